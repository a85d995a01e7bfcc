"""Where a model looks, picture by picture: maps by several methods, beside what they are worth, and the attention of every patch, layer and head.

    pictures   [{file, title, photo, view, flags, attention}]: title says what is known of it; photo is null where there is none; view (top, left, height,
               width) is what the model saw, in fractions of the photo; attention is null where none is held, else [{patch: Rows, class: Rows or null}] of
               each layer of `layers`
    methods    [{name, how, steps}], each step the weights of an epoch, the final ones last:
               {name, maps uint8 (n, gh, gw) with 255 = the map's largest, largest float32 (n,), measures, beside, own}; measures are rows of a table, over
               all pictures that were looked at: [name, value, kind, verdict, baselines...]; beside has [name, hardest baseline] of each that has one, a mean
               over several pictures where it says so, own[i] the texts of picture i of the same, or null
    caption    of the table of measures; unmeasured: what is said of a picture that has none
    heads      of the table of measures, with the names of the baselines in their order
    layers     [{name, grid}] of the attention that is held; class_token: whether the model has one; elsewhere, pointing, reading: what rest is, how a patch is
               asked for and how the maps of layers and heads are read, in words; absent where no attention is held

Rows are {rows uint8 (1 + h, q, k), 255 = the row's largest; scale float32 (1 + h, q), that largest weight; rest float32 (1 + h, q), the share that went to
tokens without a place}: the mean of the heads, then each of them, which may be left out. The class token's have q = 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from pellucid.attention_findings import STEPS, KeptAttention, has_attention, load_attention
from pellucid.errors import RunError
from pellucid.findings import ARRAYS, FINDINGS, IMAGES, NAMES, Findings, ImageFinding, MapKind, Score, hardest_baseline, load_findings, verdict
from pellucid.records import read_picture
from pellucid.run import Measurement, Run, rounded
from pellucid.views import FULLER, Room, View, size
from pellucid.views.encoding import array, name, number, picture

SIDE = 360  # pixels of a photo's long side
FINAL = "final weights"


def build(run: Run, room: Room) -> View | None:
    """What was seen of the pictures of a run."""
    return of_folder(run.inside, room)


def of_folder(folder: Path, room: Room) -> View | None:
    """The view of a folder of findings; None where it has neither maps nor attention. RunError where its files were changed.

    What has no room is left out: pictures first, then heads give way to their mean, then layers, the last of them never before another.
    """
    from pellucid.report.inside import Arrays

    if not (folder / FINDINGS).is_file():
        return None
    findings = load_findings(folder)
    kept = load_attention(folder, len(findings.images)) if has_attention(folder) else None
    if not findings.images or not (findings.maps or kept):
        return None
    steps = [_steps(kind, findings, Arrays(folder / ARRAYS)) for kind in findings.maps]
    first = kept.findings.pictures if kept else []
    order = [*first, *(i for i in range(len(findings.images)) if i not in set(first))]
    # Attention is large and moves: it gets half of what there is, and what the photos leave.
    shown: list[int] = []
    photos: list[dict[str, Any]] = []
    taken = size(_view(findings, steps, [], []))
    for i in order:
        photo = _photo(folder, findings.images[i], i)
        taken += size(photo) + sum(_text(step.maps[i].size) + 12 * (2 + len(step.own)) for method in steps for step in method)
        if shown and taken > room.bytes * (0.5 if kept else 1.0) - 1500:
            break
        shown.append(i)
        photos.append(photo)
    places = np.argsort(shown)
    shown, photos = [shown[at] for at in places], [photos[at] for at in places]
    view = _view(findings, steps, shown, photos)
    if len(shown) < len(findings.images):
        view["notes"].append(f"{len(shown):,} of {len(findings.images):,} pictures are here; the means are over all. {FULLER}")
    if kept is not None:
        _add_attention(view, kept, shown, room.bytes - size(view) - 1000)
    return view


def _view(findings: Findings, steps: list[list[_Step]], shown: list[int], photos: list[dict[str, Any]]) -> View:
    """The view without attention, of some pictures."""
    baselines = list(dict.fromkeys(name for score in findings.scores for name in score.baselines))
    methods = [
        {"name": kind.method, "how": f"{kind.how}.", "steps": [step.view(shown, baselines) for step in of]}
        for kind, of in zip(findings.maps, steps, strict=True)
    ]
    several, judged = len(findings.images) > 1, any(step.own for of in steps for step in of)
    return {
        "title": "Where the model looks", "notes": [], "pictures": photos, "methods": methods,
        "caption": "Means over all pictures" if several else "Measures of this picture",
        "unmeasured": f"Not measured: {'this picture has no mask' if judged else 'nobody says where the map should be bright'}.",
        "heads": ["map", "measure", *({"text": text, "num": True} for text in ("value", *baselines)), "verdict"], "layers": [], "class_token": False,
    }  # fmt: skip


# ── pictures and maps ────────────────────────────────────────────────────────────────────────────────────────────


def _photo(folder: Path, finding: ImageFinding, index: int) -> dict[str, Any]:
    """A picture and what is known of it."""
    path = folder / IMAGES / f"{index}.webp"
    photo, missing = None, ""
    try:
        image = read_picture(path).convert("RGB")
        _check_size(path, finding, image)
        image.thumbnail((SIDE, SIDE))
        photo = picture(image)
    except FileNotFoundError:
        missing = "no picture was kept"
    except (OSError, ValueError, SyntaxError):  # what Pillow raises on damaged files; the page says so in its place
        missing = "the picture cannot be read"
    (height, width), (top, left, down, across) = finding.size, finding.view
    sure = "" if finding.confidence is None else f" {rounded(finding.confidence)}"
    known = [finding.label and f"label {name(finding.label)}", finding.prediction and f"prediction {name(finding.prediction)}{sure}", missing]
    return {
        "file": name(finding.file), "title": ", ".join(filter(None, [name(finding.file), *known])), "photo": photo,
        "view": [top / height, left / width, down / height, across / width], "flags": finding.flags, "attention": None,
    }  # fmt: skip


def _check_size(path: Path, finding: ImageFinding, image: PIL.Image.Image) -> None:
    (height, width), (wide, tall) = finding.size, image.size
    if abs(tall - height * wide / width) > 1 and abs(wide - width * tall / height) > 1:  # a smaller copy is rounded to whole pixels
        raise RunError(f"{path}: expected {finding.file} of {height} x {width} pixels or a smaller copy, got {tall} x {wide}; the folder was changed")


@dataclass(frozen=True)
class _Step:
    """Maps of one method by the weights of one epoch. maps (n, gh, gw) float64; own: of each score with a baseline its value on every picture, or None."""

    name: str
    maps: NDArray[np.float64]
    scores: list[Score]
    own: list[tuple[Score, list[float | None]]]

    def view(self, shown: list[int], baselines: list[str]) -> dict[str, Any]:
        """What the script draws, of the pictures that are shown."""
        maps = self.maps[shown]
        largest = maps.max(axis=(1, 2)) if shown else np.zeros(0)
        return {
            "name": self.name,
            "maps": array(_quantised(maps, largest[:, None, None])),
            "largest": array(largest.astype(np.float32)),
            "measures": [_measure(score, baselines) for score in self.scores],
            "beside": [_beside(score) for score, _ in self.own],
            "own": [[None if values[i] is None else rounded(values[i], score.value.unit) for score, values in self.own] for i in shown],
        }


def _steps(kind: MapKind, findings: Findings, arrays: Any) -> list[_Step]:
    """The maps of a method over the epochs whose maps were measured, those of the final weights last."""
    count, steps = len(findings.images), []
    for of in findings.over_epochs:
        scores = [score for score in of.scores if score.method == kind.method]
        beside = [score for score in scores if score.baselines]
        if beside:  # no picture without its measure
            own = [(score, _finite(arrays[f"scores/{kind.method}/{score.measure}/{of.epoch}"], count)) for score in beside]
            steps.append(_Step(f"epoch {of.epoch}", arrays.maps(kind, count, of.epoch), scores, own))
    scores = [score for score in findings.scores if score.method == kind.method]
    own = [(score, [image.scores.get(kind.method, {}).get(score.measure) for image in findings.images]) for score in scores if score.baselines]
    return [*steps, _Step(FINAL, arrays.maps(kind, count), scores, own)]


def _finite(values: NDArray[np.float64], count: int) -> list[float | None]:
    if values.shape != (count,):
        raise RunError(f"{ARRAYS}: expected a score of each of {count} images, got shape {values.shape}; the file was changed")
    return [float(value) if math.isfinite(value) else None for value in values]


def _measure(score: Score, baselines: list[str]) -> list[Any]:
    """A score over all pictures, as a row of the table: name, value, better, worse or open, the verdict, each of the baselines."""
    said, kind = verdict(score)
    return [_name(score), number(score.value), kind, said, *(_said(score.baselines.get(name)) for name in baselines)]


def _beside(score: Score) -> tuple[str, str]:
    """What a score is called, and its hardest baseline in a word and a number: a mean, as that of each picture is not kept."""
    hardest = hardest_baseline(score)
    baseline = score.baselines[hardest]
    mean = f", mean over {rounded(baseline.n, 'count')} pictures:" if baseline.n > 1 else ""
    return _name(score), f"{NAMES.get(hardest, hardest)}{mean} {baseline}"


def _name(score: Score) -> str:
    return score.measure.replace("_", " ") + ("" if score.higher_is_better else " (lower is better)")


def _said(measurement: Measurement | None) -> str:
    return "–" if measurement is None else str(measurement)


# ── attention ────────────────────────────────────────────────────────────────────────────────────────────────────


def _add_attention(view: View, kept: KeptAttention, shown: list[int], room: int) -> None:
    """Put as much attention into the view as `room` bytes of text hold, and say what was left out."""
    count = len(kept.findings.layers)
    pictures = [i for i in kept.findings.pictures if i in set(shown)]
    for heads, layers in _plans(kept):
        held = _held(kept, pictures, layers, heads=heads, room=room)
        if held:
            break
    view["notes"] += kept.findings.notes
    if not held:
        view["notes"].append(f"The attention of patches, layers and heads has no room here; {FULLER}")
        return
    for i, attention in held.items():
        view["pictures"][shown.index(i)]["attention"] = attention
    has_class = kept.findings.class_token
    view["class_token"], view["elsewhere"] = has_class, "class token and others without a place" if has_class else "tokens without a place"
    view["pointing"] = (
        f"Point at a patch of the photo, or move with the arrow keys{', Escape is the class token' if has_class else ''}; a press keeps the patch."
    )
    across = "the mean of the heads, then each head, from top to bottom" if heads else "the mean of the heads"
    view["reading"] = f"Layers from left to right; {across}. Arrow keys choose. Each map runs from 0 to its own largest weight. Kept: {kept.findings.how}."
    named = [(at, kept.findings.layers[at]) for at in layers]
    view["layers"] = [{"name": f"layer {at + 1} of {count}, {layer.module}", "grid": list(layer.grid)} for at, layer in named]
    left_out = [f"{some} of {whole} {what}" for some, whole, what in
                ((len(held), len(kept.findings.pictures), "pictures"), (len(layers), count, "layers")) if some < whole]  # fmt: skip
    if not heads and any(layer.heads > 1 for _, layer in named):
        left_out.append("the mean of the heads of each layer")
    if left_out:
        view["notes"].append(f"Of the attention of patches, here are {', '.join(left_out)}; {FULLER}")


def _plans(kept: KeptAttention) -> Iterator[tuple[bool, list[int]]]:
    """(every head, layers), ever smaller: all heads, their mean, and then fewer layers, evenly, the last one always among them."""
    count = len(kept.findings.layers)
    if any(layer.heads > 1 for layer in kept.findings.layers):
        yield True, list(range(count))
    while count:
        yield False, np.unique(np.linspace(len(kept.findings.layers) - 1, 0, count).round().astype(int)).tolist()
        count //= 2


def _held(kept: KeptAttention, pictures: list[int], layers: Sequence[int], *, heads: bool, room: int) -> dict[int, list[dict[str, Any]]]:
    """{picture: its attention in each of the layers} of as many pictures as `room` bytes of text hold."""
    held: dict[int, list[dict[str, Any]]] = {}
    for i in pictures:
        found: list[dict[str, Any]] = []
        for at in layers:
            found.append(_layer(kept, i, at, heads=heads))
            room -= size(found[-1]) + 1
            if room < 0:
                return held
        held[i] = found
    return held


def _layer(kept: KeptAttention, i: int, at: int, *, heads: bool) -> dict[str, Any]:
    """The attention of a picture in one layer: of its patches, and of the class token where there is one, whose heads are few numbers and stay."""
    of_class = kept.arrays.get(f"class/{i}/{at}")
    found: dict[str, Any] = {"patch": _rows(kept.weights(i, at), np.asarray(kept.arrays[f"rest/{i}/{at}"], np.float64), heads=heads), "class": None}
    if of_class is not None:
        weights = np.asarray(of_class, np.float64)[:, None]  # (h, 1, k)
        found["class"] = _rows(weights, np.clip(1.0 - weights.sum(axis=-1), 0.0, 1.0), heads=True)
    return found


def _rows(weights: NDArray[np.float64], rest: NDArray[np.float64], *, heads: bool) -> dict[str, Any]:
    """Rows of weights (h, q, k) and rest (h, q): the mean of the heads and, where they are wanted and more than one, each of them."""
    weights, rest = (np.concatenate([x.mean(axis=0, keepdims=True), x if heads and len(x) > 1 else x[:0]]) for x in (weights, rest))
    scale = weights.max(axis=-1)
    return {"rows": array(_quantised(weights, scale[..., None])), "scale": array(scale.astype(np.float32)), "rest": array(rest.astype(np.float32))}


def _quantised(values: NDArray[np.float64], largest: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Values from 0 to `largest` in STEPS steps of it; zeros where it is 0."""
    return np.rint(STEPS * np.divide(values, largest, out=np.zeros_like(values), where=largest > 0)).astype(np.uint8)


def _text(count: int) -> int:
    """Letters of base64 that so many bytes take."""
    return -(-count // 3) * 4
