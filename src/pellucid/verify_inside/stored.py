"""What a run kept of looking inside its model, checked against itself: every number from the arrays and the snapshots, and that nothing is left out."""

from __future__ import annotations

import math

import numpy as np
import scipy.stats
from numpy.typing import NDArray

from pellucid.findings import MapKind, Panel, ProjectionFinding, Score
from pellucid.inside.artefacts import flags
from pellucid.run import Measurement, Probe, rounded
from pellucid.verify_inside import planes, scores
from pellucid.verify_inside.kept import Kept, Line, Told, guarded, line
from pellucid.verify_inside.scores import wide
from pellucid.verify_inside.views import stored_view_checks

EXACT = 1e-6  # two correct float64 computations of one number from the same arrays
LEAST_POINTS, NEIGHBOURS = 4, 10  # of a projection
UP = {"deletion": False, "randomisation": False}  # measures of which less is better
PROJECTIONS = {"pca": ("pca-last", "pca-each"), "tsne": ("tsne",)}
PANEL = ("knn_accuracy", "silhouette", "plane_silhouette", "neighbours_kept", "trustworthiness")


def stored_checks(kept: Kept, progress: Told | None = None) -> list[Line]:
    """All checks that need neither model nor data."""
    told: Told = progress or (lambda what, done, of: None)
    lines = guarded("inside model", lambda: _about(kept)) + guarded("inside maps", lambda: _methods(kept))
    found: dict[tuple[str, str], NDArray[np.float64]] = {}
    for i, kind in enumerate(kept.findings.maps):
        told("verifying scores", i, len(kept.findings.maps))
        lines += guarded(f"inside {kind.method}", lambda method=kind.method, grid=kind.grid: _scores(kept, method, grid, found))  # type: ignore[misc]
    lines += guarded("inside scores", lambda: _complete(kept, found))
    lines += guarded("inside images", lambda: _images(kept, found))
    lines += guarded("inside epochs", lambda: _epochs(kept))
    lines += guarded("inside neighbours", lambda: stored_view_checks(kept))
    return lines + guarded("inside projections", lambda: _projections(kept, told))


# ── scores ────────────────────────────────────────────────────────────────────────────────────────────────────


def _about(kept: Kept) -> list[Line]:
    """What the findings say of the model, its weights and its classes is what the run says."""
    f, run = kept.findings, kept.run
    pairs = (
        ("model", f.model, kept.recipe.model.name), ("weights", f.weights, f"final weights, {run.record.selected}"), ("classes", f.classes, run.data.classes)
    )  # fmt: skip
    faults = [f"{name} {said}, the run has {true}" for name, said, true in pairs if said != true]
    return [line("inside model", faults, "model, weights and classes are the run's; not recomputed: position embeddings, t-SNE layouts, texts")]


def _methods(kept: Kept) -> list[Line]:
    found = [kind.method for kind in kept.findings.maps]
    if not kept.n:
        return [line("inside maps", [f"maps of {found[0]} without an image"] if found else [], "no picture was to be looked at")]
    wanted = list(kept.inside.methods or [])
    faults = [f"{method} is missing" for method in wanted if method not in found] + [f"{m} was not asked for" for m in found if wanted and m not in wanted]
    faults += [f"{method} stands there twice" for method in set(found) if found.count(method) > 1]
    faults += [] if found else ["there is none"]
    return [line("inside maps", faults, f"{', '.join(found)} of {kept.n} pictures")]


def _scores(kept: Kept, method: str, grid: tuple[int, int], found: dict[tuple[str, str], NDArray[np.float64]]) -> list[Line]:
    """The scores of one kind of map; the values of each picture go to `found`."""
    maps, random = kept.maps(f"maps/{method}", grid), kept.maps(f"random/{method}", grid)
    lines = []
    if kept.masked:
        targets, valid = kept.masks(grid)
        rivals = dict(kept.priors[grid])
        rivals |= {"shuffled": scores.shuffled_table(maps, targets, valid), "random model": scores.table(random, targets, valid)}
        for measure, values in scores.table(maps, targets, valid).items():
            found[method, measure] = values
            lines += score_lines(kept, method, measure, values, {name: rival[measure] for name, rival in rivals.items()}, EXACT, "its maps and masks")
    else:
        for measure in scores.AREAS:  # only the model can say them anew; here the numbers of the set from those of the pictures
            found[method, measure] = wide(kept.arrays[f"scores/{method}/{measure}"])
            lines += _area_lines(kept, method, measure, found[method, measure])
    likeness = np.array([scores.spearman(wide(a), wide(b)) for a, b in zip(maps, random, strict=True)])
    found[method, "randomisation"] = likeness
    return lines + score_lines(kept, method, "randomisation", likeness, {}, EXACT, "its maps")


def score_lines(
    kept: Kept, method: str, measure: str, values: NDArray[np.float64], rivals: dict[str, NDArray[np.float64]], tolerance: float, path: str,
    epoch: int | None = None,
) -> list[Line]:  # fmt: skip
    """One Score against the values of each picture, its baselines and margins; of a snapshot's maps where an epoch is given."""
    array = wide(kept.arrays[f"scores/{method}/{measure}" + ("" if epoch is None else f"/{epoch}")])
    score = _score(kept, method, measure, epoch)
    method += "" if epoch is None else f", epoch {epoch}"
    what = f"inside {measure}[{method}]"
    faults = _differing(array, values, tolerance, [image.file for image in kept.findings.images])
    if not np.isfinite(values).any():
        return [line(what, [*faults, *(["a score of no picture"] if score else [])], "no picture has it")]
    if score is None:
        return []  # `_complete` says so
    wanted = scores.numbers(values, rivals)
    reported = _reported(score)
    faults += [f"{name} is missing" for name in wanted if name not in reported] + [
        f"{name} has no picture behind it" for name in reported if name not in wanted
    ]
    for name in wanted.keys() & reported.keys():
        faults += number_faults(kept, reported[name], _name(method, measure, name), wanted[name], tolerance, _unit(measure, name))
    faults += [] if score.higher_is_better == UP.get(measure, True) else ["it says the wrong way is up"]
    beside = f", {len(score.baselines)} baselines and {len(score.margins)} margins" if score.baselines else ""
    return [line(what, faults, f"{score.value}{beside} recomputed from {path}")]


def _score(kept: Kept, method: str, measure: str, epoch: int | None = None) -> Score | None:
    of = kept.findings.scores if epoch is None else next((of.scores for of in kept.findings.over_epochs if of.epoch == epoch), [])
    return next((score for score in of if (score.method, score.measure) == (method, measure)), None)


def _reported(score: Score) -> dict[str, Measurement]:
    """The measurements of a score under the names that `scores.numbers` gives them."""
    return {"value": score.value, **score.baselines, **{f"- {name}": margin for name, margin in score.margins.items()}}


def _name(method: str, measure: str, name: str) -> str:
    if name == "value":
        return f"{measure}[{method}]"
    return f"{measure}[{method}] {name}" if name.startswith("- ") else f"{measure}[{method}, {name}]"


def _unit(measure: str, name: str) -> str:
    return "correlation" if measure == "randomisation" and name == "value" else "fraction"


def number_faults(kept: Kept, m: Measurement, name: str, values: NDArray[np.float64], tolerance: float, unit: str) -> list[str]:
    """What is wrong with the mean of some values as it was reported."""
    mean, n, interval = scores.mean_and_interval(values)
    faults = [f"{name}: reported {m}, recomputed {rounded(mean, unit)}"] if not abs(m.value - mean) <= tolerance else []
    return faults + about_faults(kept, m, name, n, unit) + interval_faults(m, interval, name, tolerance)


def about_faults(kept: Kept, m: Measurement, name: str, n: int, unit: str) -> list[str]:
    split = kept.inside.split if (" epoch " not in name and name.startswith(PANEL)) or name.split("[")[0] in PANEL else kept.inside.shown
    said, wanted = (m.name, m.n, m.seed, m.split, m.unit), (name, n, kept.recipe.seed, split, unit)
    return [] if said == wanted else [f"{name}: name, n, seed, split and unit are {said}, recomputed {wanted}"]


def interval_faults(m: Measurement, interval: tuple[float, float] | None, name: str, tolerance: float) -> list[str]:
    if interval is None or m.interval is None:
        return [] if interval is m.interval is None else [f"{name}: {'no interval' if m.interval is None else 'an interval where none belongs'}"]
    if max(abs(a - b) for a, b in zip(interval, m.interval, strict=True)) <= tolerance:
        return []
    told, anew = (f"{rounded(low, m.unit)} to {rounded(high, m.unit)}" for low, high in (m.interval, interval))
    return [f"{name}: interval {told} reported, {anew} recomputed"]


def _area_lines(kept: Kept, method: str, measure: str, values: NDArray[np.float64]) -> list[Line]:
    """Deletion or insertion: value and interval from the pictures; margins are differences of means over the same pictures."""
    score = _score(kept, method, measure)
    if score is None or not np.isfinite(values).any():
        return []
    faults = number_faults(kept, score.value, f"{measure}[{method}]", values, EXACT, "fraction")
    if score.baselines.keys() != {"uniform", "centre", "random model"} or score.margins.keys() != score.baselines.keys():
        faults.append(f"baselines and margins are {sorted(score.baselines)} and {sorted(score.margins)}")
    for name, baseline in score.baselines.items():
        margin = score.margins.get(name)
        if margin is not None and not abs(score.value.value - baseline.value - margin.value) <= EXACT:
            faults.append(f"the margin to {name} is not the difference of the two")
    faults += [] if score.higher_is_better == UP.get(measure, True) else ["it says the wrong way is up"]
    return [line(f"inside {measure}[{method}] of the set", faults, "mean, interval and margins fit the values of the pictures")]


def _differing(array: NDArray[np.float64], values: NDArray[np.float64], tolerance: float, names: list[str]) -> list[str]:
    if array.shape != values.shape:
        return [f"expected a value for each of {len(values)} pictures, got {array.shape}"]
    wrong = np.flatnonzero(~((np.abs(array - values) <= tolerance) | (np.isnan(array) & np.isnan(values))))
    return [f"{names[i]}: kept {rounded(array[i])}, recomputed {rounded(values[i])}" for i in wrong]


def _complete(kept: Kept, found: dict[tuple[str, str], NDArray[np.float64]]) -> list[Line]:
    """Each score that the maps have, once, and no other."""
    wanted = [key for key, values in found.items() if np.isfinite(values).any()]
    there = [(score.method, score.measure) for score in kept.findings.scores]
    faults = [f"{measure}[{method}] is missing" for method, measure in wanted if (method, measure) not in there]
    faults += [f"{measure}[{method}] belongs to no map" for method, measure in there if (method, measure) not in wanted]
    faults += [f"{measure}[{method}] stands there twice" for method, measure in set(there) if there.count((method, measure)) > 1]
    return [line("inside scores", faults, f"all {len(wanted)} that these maps have")]


def _images(kept: Kept, found: dict[tuple[str, str], NDArray[np.float64]]) -> list[Line]:
    """The scores, artefacts and flags of each picture."""
    faults = []
    patches = {kind.method: math.prod(kind.grid) for kind in kept.findings.maps}
    for i, image in enumerate(kept.findings.images):
        own = {key: float(values[i]) for key, values in found.items() if math.isfinite(values[i])}
        told = {(method, measure): value for method, row in image.scores.items() for measure, value in row.items()}
        faults += [f"{image.file}: {measure}[{method}] is missing" for method, measure in own if (method, measure) not in told]
        faults += [f"{image.file}: {m}[{k}] reported {rounded(v)}, recomputed {rounded(own.get((k, m)))}"
                   for (k, m), v in told.items() if not abs(v - own.get((k, m), math.nan)) <= EXACT]  # fmt: skip
        for kind in kept.findings.maps:
            said = image.artefacts.get(kind.method, {})
            for name, value in scores.map_artefacts(wide(kept.arrays[f"maps/{kind.method}"][i])).items():
                if not abs(said.get(name, math.nan) - value) <= EXACT:
                    faults.append(f"{image.file}: {name} of {kind.method} reported {rounded(said.get(name))}, recomputed {rounded(value)}")
        sentences = [f"{method}: {sentence}" for method, row in image.artefacts.items() for sentence in flags(row, patches=patches[method])]
        faults += [] if sentences == image.flags else [f"{image.file}: its flags do not follow from its artefacts"]
    return [line("inside images", faults, f"scores, largest patch and entropy of {kept.n} pictures recomputed")] if kept.n or faults else []


# ── snapshots ─────────────────────────────────────────────────────────────────────────────────────────────────


def _epochs(kept: Kept) -> list[Line]:
    """The maps of the epochs are those of the snapshots, to the bit, and their scores follow from them."""
    snapshots = {epoch: kept.run.snapshot(epoch) for epoch in kept.run.snapshot_epochs}
    wanted = list(snapshots)
    faults = [f"epochs {kept.findings.epochs} reported, there are snapshots of {wanted}"] if kept.findings.epochs != wanted else []
    pairs = [(kind, epoch) for epoch in wanted for kind in kept.findings.maps if kind.method in snapshots[epoch].maps]
    faults += [
        f"maps of {kind.method} at epoch {epoch} are not those of its snapshot"
        for kind, epoch in pairs
        if not np.array_equal(kept.arrays.get(f"maps/{kind.method}/{epoch}", np.empty(0)), snapshots[epoch].maps[kind.method])
    ]
    lines, asked = [], set()
    for kind, epoch in pairs:
        for measure, found in _epoch_scores(kept, kind, epoch):
            lines += found
            asked.add((epoch, kind.method, measure))
    there = [(of.epoch, score.method, score.measure) for of in kept.findings.over_epochs for score in of.scores]
    faults += [f"{measure}[{method}, epoch {epoch}] {'is missing' if key not in there else 'belongs to no map'}"
               for key in sorted(asked ^ set(there)) for epoch, method, measure in [key]]  # fmt: skip
    faults += [f"{measure}[{method}, epoch {epoch}] stands there twice" for epoch, method, measure in {key for key in there if there.count(key) > 1}]
    told = f"maps of {len(wanted)} epochs are those of their snapshots, with all {len(asked)} scores"
    return [*([line("inside epochs", faults, told)] if pairs or faults else []), *lines]


def _epoch_scores(kept: Kept, kind: MapKind, epoch: int) -> list[tuple[str, list[Line]]]:
    """(measure, lines) of each score that a snapshot's maps of one kind have."""
    maps, random = kept.maps(f"maps/{kind.method}/{epoch}", kind.grid), kept.maps(f"random/{kind.method}", kind.grid)
    values = {"randomisation": np.array([scores.spearman(wide(a), wide(b)) for a, b in zip(maps, random, strict=True)])}
    rivals: dict[str, dict[str, NDArray[np.float64]]] = {}
    if kept.masked:
        targets, valid = kept.masks(kind.grid)
        values |= scores.table(maps, targets, valid)
        rivals = dict(kept.priors[kind.grid])
        rivals |= {"shuffled": scores.shuffled_table(maps, targets, valid), "random model": scores.table(random, targets, valid)}
    found = []
    for measure, x in values.items():
        if np.isfinite(x).any():
            beside = {name: rival[measure] for name, rival in rivals.items() if measure in rival}
            found.append((measure, score_lines(kept, kind.method, measure, x, beside, EXACT, "the maps of its snapshot", epoch)))
    return found


def _projections(kept: Kept, told: Told) -> list[Line]:
    probe = kept.run.probe()
    snapshots = {epoch: kept.run.snapshot(epoch).features for epoch in kept.run.snapshot_epochs}
    features = {epoch: x for epoch, x in snapshots.items() if x is not None}
    asked = kept.inside.projections if kept.inside.projections is not None else list(PROJECTIONS)
    wanted = [name for way in asked for name in PROJECTIONS[way]] if features and len(probe.rows) >= LEAST_POINTS else []
    there = [projection.name for projection in kept.findings.projections]
    faults = [f"{name} is missing" for name in wanted if name not in there] + [f"{name} was not asked for" for name in there if name not in wanted]
    faults += [f"{name} stands there twice" for name in set(there) if there.count(name) > 1]
    if wanted and not np.array_equal(kept.arrays.get("probe/labels", np.empty(0)), probe.labels):
        faults.append("the labels of the probe are not those of snapshots/probe.npz")
    lines = [line("inside projections", faults, f"{', '.join(there) or 'none'} of {len(probe.rows)} images")] if wanted or faults else []
    if len(probe.rows) > planes.MOST_POINTS:
        return [*lines, ("inside panels", True, f"numbers of projections are not recomputed: {len(probe.rows):,} points, at most {planes.MOST_POINTS:,}")]
    known = [projection for projection in kept.findings.projections if projection.name in wanted]
    for projection in known:
        lines += guarded(f"inside {projection.name}", lambda p=projection: [_coordinates(kept, p, features)])  # type: ignore[misc]
    for i, (epoch, x) in enumerate(features.items()):
        told("verifying projections", i, len(features))
        lines += _panels(kept, known, i, epoch, x, probe)
    return lines


def _coordinates(kept: Kept, projection: ProjectionFinding, features: dict[int, NDArray[np.floating]]) -> Line:
    """Panels for each epoch, coordinates for each point; those of PCA by scikit-learn."""
    what = f"inside {projection.name}"
    n, found = len(next(iter(features.values()))), wide(kept.arrays[f"projection/{projection.name}"])
    epochs = [panel.epoch for panel in projection.panels]
    faults = [f"panels of epochs {epochs}, features of {list(features)}"] if epochs != list(features) else []
    if list(found.shape) != [len(features), n, 2] or not np.isfinite(found).all():
        return line(what, [*faults, f"expected finite coordinates {(len(features), n, 2)}, got {found.shape}"], "")
    if not projection.name.startswith("pca"):
        return line(what, faults, "a layout for each epoch; its numbers below are of these coordinates, which are not drawn again")
    wanted, unsure = planes.principal_planes(list(features.values()), projection.name)
    difference, tolerance = planes.largest_difference(found, np.stack(wanted)), 1e-5 + 4 * unsure
    if tolerance > 0.1:
        return line(what, faults, "its directions have nearly equal variances, so that coordinates cannot be compared")
    if not difference <= tolerance:
        faults.append(f"coordinates differ by {difference:.2g} of the largest from scikit-learn's, allowed {tolerance:.2g}")
    return line(what, faults, f"coordinates are scikit-learn's to {difference:.2g} of the largest")


def _panels(kept: Kept, projections: list[ProjectionFinding], i: int, epoch: int, x: NDArray[np.floating], probe: Probe) -> list[Line]:
    """The panels of one epoch in every projection; distances in feature space are computed once."""
    k = min(NEIGHBOURS, (len(probe.rows) - 1) // 2)
    space = planes.in_space(planes.centred(x))
    near = planes.neighbours(space, k)
    knn, silhouette = planes.knn_accuracy(near, probe.labels), planes.silhouette(space, probe.labels)
    lines: list[Line] = []
    for projection in projections:
        panel = next((panel for panel in projection.panels if panel.epoch == epoch), None)
        coordinates = wide(kept.arrays.get(f"projection/{projection.name}", np.empty(0)))
        if panel is None or list(coordinates.shape[1:]) != [len(x), 2] or len(coordinates) <= i:
            continue  # told by `_coordinates`
        plane = planes.on_plane(coordinates[i])
        shown = planes.neighbours(plane, k)
        bounds = {
            "knn_accuracy": knn,
            "silhouette": silhouette,
            "plane_silhouette": planes.silhouette(plane, probe.labels),
            "neighbours_kept": planes.neighbours_kept(near, shown, k),
            "trustworthiness": planes.trustworthiness(space, shown, k),
        }
        lines.append(_panel(kept, projection.name, panel, bounds, len(x)))
    return lines


def _panel(kept: Kept, name: str, panel: Panel, bounds: dict[str, planes.Bounds | None], n: int) -> Line:
    faults, widest = [], 0.0
    for measure in PANEL:
        m, bound = getattr(panel, measure), bounds[measure]
        if m is None or bound is None:
            faults += [] if m is None and bound is None else [f"{measure}: {'missing' if m is None else 'there is no such number'}"]
            continue
        of_space = measure in ("knn_accuracy", "silhouette")
        unit = "score" if measure.endswith("silhouette") else "fraction"
        faults += about_faults(kept, m, f"{measure}[{'' if of_space else f'{name}, '}epoch {panel.epoch}]", n, unit)
        widest = max(widest, bound.high - bound.low)
        if not bound.hold(m.value, EXACT):
            between = f" (float32 allows {bound.low:.6f} to {bound.high:.6f})" if bound.high - bound.low > EXACT else ""
            faults.append(f"{measure}: reported {m}, recomputed {rounded(bound.value, m.unit)}{between}")
        exact = scipy.stats.binomtest(round(m.value * n), n).proportion_ci(0.95, method="wilson") if measure == "knn_accuracy" else None
        faults += interval_faults(m, None if exact is None else (float(exact.low), float(exact.high)), measure, EXACT)
    what = f"inside {name}, epoch {panel.epoch}"
    loose = f"; distances in float32 leave up to {widest:.1g}" if widest > EXACT else ""
    shown = f"k-NN {panel.knn_accuracy}, silhouette {panel.silhouette or 'none'}, neighbours kept {panel.neighbours_kept}"
    return line(what, faults, f"{shown} and two more recomputed{loose}")
