"""The figures of a run by name, for paper: each at the width of a column or a page, as PNG, SVG and PDF. Reads what the run keeps; needs no torch.

`FIGURES` is the list: what each task has, what each shows, and which part of the recipe keeps what it is drawn from. Drawing is in `figures`, which lays a
figure out for a width; text is never below 6 points and stays text in SVG and PDF, whose fonts are embedded (TrueType, type 42).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pellucid import attention_findings, findings, kept, mask_findings, word_findings
from pellucid.caption_readings import CHOSEN, caption_charts, word_maps
from pellucid.errors import RunError, UsageError, did_you_mean
from pellucid.paper_asked import INCH, PAGE, Asked, split_of
from pellucid.paper_galleries import captions_figure, hardest_figure, near_figure, views_figure
from pellucid.paper_runs import runs_curves, runs_in, study_classes_figure, study_curves_figure, study_has
from pellucid.readings import Chart, by_epoch, calibrate, common_limits, confusion_counts, curve, learning_rate, pretraining_charts
from pellucid.records import read_arrays, read_picture
from pellucid.report.content import read_predictions
from pellucid.run import Run, rounded
from pellucid.study_record import StudyFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("png", "svg", "pdf")
PANELS = 3  # epochs beside each other: an early, a middle and the last
MOST_MISTAKES = 16
OPTIONS = ("picture", "epoch", "split", "layer")


@dataclass(frozen=True)
class Plate:
    """One figure. keeps: what keeps that which it is drawn from. by: the options that it follows, of OPTIONS."""

    shows: str
    there: Callable[[Run], bool]
    draw: Callable[[Run, Asked], Figure]
    keeps: str
    by: tuple[str, ...] = ()


@dataclass(frozen=True)
class Listed:
    """The name of a figure that a folder can give, and what it shows."""

    name: str
    shows: str


@dataclass(frozen=True)
class Drawn:
    """The files of a figure, its width in millimetres, and sentences on what the reader of it must know."""

    files: list[Path]
    width: float
    notes: list[str]


def figures_of(folder: Path) -> list[Listed]:
    """What the folder of a run, of a study or of runs over seeds can give now."""
    return [Listed(name, plate.shows) for name, plate in _plates(folder).items() if plate.there(_opened(folder))]


def draw_figure(folder: Path, name: str, asked: Asked, *, formats: Sequence[str] | None = None, dpi: int = 300, out: Path | None = None) -> Drawn:
    """Draw one figure of a folder and write it.

    formats: of FORMATS; default: all, or that of `out`'s ending. out: the file, or a folder for it; default: figures/paper of the folder. UsageError for a
    name, a format or a picture that there is not; RunError where the run did not keep what the figure is drawn from.
    """
    plates = _plates(folder)
    if name not in plates:
        raise UsageError(f"{folder}: no figure is called {name!r}.{did_you_mean(name, plates)} It has: {', '.join(one.name for one in figures_of(folder))}.")
    wanted, path = _target(folder, name, formats, out)
    plate, run = plates[name], _opened(folder)
    for option in OPTIONS:
        if getattr(asked, option) is not None and option not in plate.by:
            follow = ", ".join(other for other, one in plates.items() if option in one.by)
            raise UsageError(f"--{option}: the figure {name} has no {option} to choose; these have: {follow or 'none of this run'}.")
    if not plate.there(run):
        raise RunError(f"{folder}: the run did not keep what the figure {name} is drawn from: {plate.keeps}.")
    from pellucid.figures.style import over_the_edge, save

    figure = plate.draw(run, asked)
    files = save(figure, path, wanted, dpi=dpi)
    over = ", ".join(f"{INCH * inches:.1f} mm over the {edge} edge" for edge, inches in over_the_edge(figure).items())
    notes = [f"{name} reaches {over} at a width of {asked.width:g} mm; {_wider(plate, run, asked)}"] if over else []
    return Drawn(files, asked.width, notes)


def _wider(plate: Plate, run: Any, asked: Asked) -> str:
    """The first width at which a figure is not over its edge, in steps of a centimetre up to a page."""
    from pellucid.figures.style import over_the_edge

    for width in np.arange(10 * (asked.width // 10) + 10, PAGE + 10, 10).tolist():
        if not over_the_edge(plate.draw(run, replace(asked, width=width))):
            return f"--width {width:g}mm has room for it"
    return "its names are too long for a page"


# ── numbers ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _classification_curves(run: Run, asked: Asked, *, loss: bool = True, accuracy: bool = True) -> Figure:
    from pellucid.figures import learning_curves

    lines = run.metrics()
    return learning_curves(by_epoch(lines, "loss") if loss else [], by_epoch(lines, "accuracy") if accuracy else [], width=asked.inches)


def _mask_curves(run: Run, asked: Asked) -> Figure:
    from pellucid.figures import mask_curves

    lines = run.metrics()
    miou = curve(lines, kind="val", value="miou", against="epoch", name="val", style=1)
    return mask_curves(by_epoch(lines, "loss"), by_epoch(lines, "accuracy"), [miou] if miou.points else [], width=asked.inches)


def _learning_rate(run: Run, asked: Asked) -> Figure:
    from pellucid.figures import learning_rate_curve

    return learning_rate_curve(learning_rate(run.metrics()), width=asked.inches)


def _charts(run: Run) -> list[Chart]:
    """What the epochs of a pre-training or a captioning say."""
    if run.recipe.task == "captioning":
        return caption_charts(run.metrics(), run.measurements)
    method = run.recipe.method
    assert method is not None, "the schema gives every pre-training its method"
    return pretraining_charts(run.metrics(), run.measurements, method=method.name, num_classes=len(run.data.classes))


def _chart(*names: str) -> tuple[Callable[[Run], bool], Callable[[Run, Asked], Figure]]:
    """Whether a run has one of these charts, and the figure of those that it has."""

    def there(run: Run) -> bool:
        return run.has_data and any(chart.name in names for chart in _charts(run))

    def draw(run: Run, asked: Asked) -> Figure:
        from pellucid.figures import chart_figure

        return chart_figure([chart for chart in _charts(run) if chart.name in names], width=asked.inches)

    return there, draw


def _confusion(run: Run, asked: Asked) -> Figure:
    from pellucid.figures import confusion_matrix
    from pellucid.figures.masks import pixel_confusion_matrix

    split, classes = split_of(run, asked), run.data.classes
    if run.recipe.task == "segmentation":
        return pixel_confusion_matrix(run.mask_predictions(split).confusion.sum(axis=0)[:-1], classes, width=asked.inches)
    predictions = run.predictions(split)
    return confusion_matrix(confusion_counts(predictions.labels, predictions.logits.argmax(axis=1), len(classes)), classes, width=asked.inches)


def _reliability(run: Run, asked: Asked) -> Figure:
    from pellucid.figures import reliability_diagram

    split = split_of(run, asked)
    if run.recipe.task == "segmentation":
        diagram = reliability_diagram(mask_findings.pixel_calibration(run.mask_predictions(split), split=split, seed=run.recipe.seed), width=asked.inches)
        diagram.axes[1].set_ylabel("pixels")
        return diagram
    predictions = run.predictions(split)
    probabilities = predictions.probabilities()
    right = probabilities.argmax(axis=1) == predictions.labels
    return reliability_diagram(calibrate(probabilities.max(axis=1), right, split=split, seed=run.recipe.seed), width=asked.inches)


def _ious(run: Run, asked: Asked) -> Figure:
    from pellucid.figures import iou_bars

    split, classes = split_of(run, asked), run.data.classes
    stated = {m.name: m for m in run.record.measurements if m.split == split}
    of = [stated.get(f"iou[{name}]") for name in classes]
    mean = stated["miou"].value if "miou" in stated else None
    values = [np.nan if m is None else m.value for m in of]
    return iou_bars(classes, values, [None if m is None else m.interval for m in of], split=split, mean=mean, width=asked.inches)


def _overview(run: Run, asked: Asked) -> Figure:
    from pellucid.figures import Shown, overview

    split, lines, classes = split_of(run, asked), run.metrics(), run.data.classes
    predictions = run.predictions(split)
    predicted = predictions.probabilities().argmax(axis=1)
    seen = findings.load_findings(run.inside).images if kept.pictures(run) else []
    rows = np.unique(np.linspace(0, len(seen) - 1, min(len(seen), 8)).astype(int)).tolist()
    shown = [Shown(_photo(run, i), one.label, one.prediction, one.confidence)
             for i in rows for one in [seen[i]] if one.label is not None and one.prediction is not None and one.confidence is not None]  # fmt: skip
    counts = confusion_counts(predictions.labels, predicted, len(classes))
    title = f"{run.name}: accuracy {rounded(float((predicted == predictions.labels).mean()))} on {split}, n = {len(predicted):,}"
    return overview(shown, by_epoch(lines, "loss"), by_epoch(lines, "accuracy"), counts, classes, title=title, width=asked.inches)


def _mistakes(run: Run, asked: Asked) -> Figure:
    from pellucid.figures import Shown, mistakes_gallery

    split = split_of(run, asked)
    reading = read_predictions(run.predictions(split), run.data.classes, split=split, seed=run.recipe.seed, num_mistakes=MOST_MISTAKES)
    there = [(one, run.thumbnails / split / f"{one.index:06d}.webp") for one in reading.mistakes]
    shown = [Shown(_picture(path), one.label, one.prediction, one.confidence.value) for one, path in there if path.is_file()]
    if not shown:
        raise RunError(f"{run.thumbnails / split}: the run kept no picture of its {reading.num_mistakes:,} mistakes on {split}")
    title = f"The {len(shown)} most confident of {reading.num_mistakes:,} mistakes on {split}, n = {reading.n:,}, accuracy {reading.accuracy}"
    return mistakes_gallery(shown, title=title, width=asked.inches)


# ── inside ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _attention(run: Run, asked: Asked) -> Figure:
    from pellucid.figures import attention_sheet

    found, arrays = _inside(run)
    i = _which(asked, len(found.images))
    epoch = None if asked.epoch is None else _one_of(asked.epoch, found.epochs)
    maps = {kind.method: arrays[key][i] for kind in found.maps if (key := f"maps/{kind.method}" + ("" if epoch is None else f"/{epoch}")) in arrays}
    finding, scores = found.images[i], found.scores
    if epoch is not None:
        scores = next((of.scores for of in found.over_epochs if of.epoch == epoch), [])
        finding = _at_epoch(finding, i, arrays, epoch)
    return attention_sheet(_photo(run, i), finding, maps, scores, width=asked.inches)


def _at_epoch(finding: findings.ImageFinding, i: int, arrays: Mapping[str, NDArray[Any]], epoch: int) -> findings.ImageFinding:
    """The finding with the scores of its maps after an epoch; what was predicted then is not kept, and artefacts are of the last weights."""
    own: dict[str, dict[str, float]] = {}
    for key, values in arrays.items():
        if (found := re.fullmatch(rf"scores/([^/]+)/([^/]+)/{epoch}", key)) and np.isfinite(values[i]):
            own.setdefault(found[1], {})[found[2]] = float(values[i])
    return findings.ImageFinding(f"{finding.file}, epoch {epoch}", finding.size, finding.view, finding.label, scores=own)


def _heads(run: Run, asked: Asked) -> Figure:
    from pellucid.figures import heads_sheet

    found, arrays = _inside(run)
    i = _which(asked, len(found.images))
    if asked.layer is not None:
        return _heads_of_layer(run, found.images[i], i, asked)
    key = next(key for key in arrays if key.startswith("heads/"))
    photo = _photo(run, i)
    measured = _mass(arrays, i, arrays[key][i])
    return heads_sheet(
        photo, arrays[key][i], [key.removeprefix("heads/")], view=findings.fitted_view(found.images[i], photo), measured=measured, width=asked.inches
    )


def _heads_of_layer(run: Run, finding: findings.ImageFinding, i: int, asked: Asked) -> Figure:
    """Each head of one of the layers whose attention was kept: that of the class token, or the mean over the patches where there is none."""
    from pellucid.figures import heads_sheet

    if not attention_findings.has_attention(run.inside):
        raise RunError(f"--layer: {run.path} kept the heads of one layer alone; `inside: {{attention: true}}` of the recipe keeps all layers of some pictures")
    attention = attention_findings.load_attention(run.inside)
    layers, at = attention.findings.layers, (asked.layer or 1) - 1
    if at >= len(layers):
        raise UsageError(f"--layer: the run kept {len(layers):,} layers, counted from 1; got {asked.layer:,}")
    if i not in attention.findings.pictures:
        raise UsageError(f"--picture: the layers were kept of {', '.join(str(kept + 1) for kept in attention.findings.pictures)}, got {i + 1}")
    rows, layer = attention.arrays.get(f"class/{i}/{at}"), layers[at]
    values = attention.weights(i, at).mean(axis=1) if rows is None else rows.astype(np.float64)
    maps, photo = values.reshape(-1, *layer.grid), _photo(run, i)
    name = f"layer {at + 1} of {len(layers)}, {layer.module}, {'mean over the patches' if rows is None else 'class token'}"
    _, arrays = _inside(run)
    return heads_sheet(photo, maps, [name], view=findings.fitted_view(finding, photo), measured=_mass(arrays, i, maps), width=asked.inches)


def _epochs(run: Run, asked: Asked) -> Figure:
    from pellucid.figures import epochs_strip

    found, arrays = _inside(run)
    i, method = _which(asked, len(found.images)), found.maps[0].method
    epochs = [epoch for epoch in found.epochs if f"maps/{method}/{epoch}" in arrays]
    over, photo, finding = np.stack([arrays[f"maps/{method}/{epoch}"][i] for epoch in epochs]), _photo(run, i), found.images[i]
    title, measured = f"{finding.file}: {method}", _mass(arrays, i, over)
    return epochs_strip(photo, over, epochs, view=findings.fitted_view(finding, photo), title=title, measured=measured, width=asked.inches)


def _mass(arrays: Mapping[str, NDArray[Any]], i: int, maps: NDArray[np.float64]) -> list[str]:
    """For each of some maps of picture i its share on the target, beside that of a uniform map; that nothing was measured where it has no mask."""
    grid = f"{maps.shape[-2]}x{maps.shape[-1]}"
    target, valid = arrays.get(f"target/{grid}"), arrays.get(f"valid/{grid}")
    if target is None or valid is None or not target[i].any():
        return ["no mask: not measured"] * len(maps)
    uniform = rounded(float(target[i].sum() / valid[i].sum()))
    masses = [float(one[target[i]].sum() / total) if (total := one[valid[i]].sum()) > 0 else target[i].sum() / valid[i].sum() for one in maps]
    return [f"mass {rounded(float(own))} (uniform {uniform})" for own in masses]


def _scores(run: Run, asked: Asked) -> Figure:
    from pellucid.figures import scores_figure

    return scores_figure([score for score in findings.load_findings(run.inside).scores if score.baselines], width=asked.inches)


def _positions(run: Run, asked: Asked) -> Figure:
    from pellucid.figures import positions_figure

    found, arrays = _inside(run)
    assert found.positions is not None
    return positions_figure(arrays["positions"], how=found.positions.how, width=asked.inches)


def _bias(run: Run, asked: Asked) -> Figure:
    from pellucid.figures import bias_figure

    _, arrays = _inside(run)
    key = [key for key in arrays if key.startswith("bias/")][-1]
    return bias_figure(arrays[key], name=key.removeprefix("bias/"), width=asked.inches)


def _projection(name: str) -> tuple[Callable[[Run], bool], Callable[[Run, Asked], Figure]]:
    """Whether a run has this projection, and its figure: PANELS of its epochs, or the one that is asked for."""

    def there(run: Run) -> bool:
        return kept.looked(run) and any(one.name == name for one in findings.load_findings(run.inside).projections)

    def draw(run: Run, asked: Asked) -> Figure:
        from pellucid.figures import projection_figure

        found, arrays = _inside(run)
        of = next(one for one in found.projections if one.name == name)
        epochs = [panel.epoch for panel in of.panels]
        shown = _spread(len(epochs)) if asked.epoch is None else [epochs.index(_one_of(asked.epoch, epochs))]
        points = arrays[f"projection/{name}"]
        panels = [of.panels[i] for i in shown]
        limits = None if len(shown) > 1 else _limits(points)
        return projection_figure(points[shown], arrays["probe/labels"], found.classes, panels, of.how, limits, width=asked.inches)

    return there, draw


def _limits(points: NDArray[Any]) -> Any:
    """Those of all epochs, so that one of them alone stands where it stands among the others."""
    return common_limits(np.asarray(points, np.float64))


# ── masks and words ──────────────────────────────────────────────────────────────────────────────────────────────


def _masks(run: Run, asked: Asked) -> Figure:
    from pellucid.figures import masks_sheet
    from pellucid.figures.masks import mask_row

    found = mask_findings.load_mask_findings(run.inside)
    i = _which(asked, len(found.pictures))
    shown = _spread(len(found.epochs)) if asked.epoch is None else [found.epochs.index(_one_of(asked.epoch, found.epochs))]
    row = mask_row(run.inside, found, i, shown)
    return masks_sheet([row], [found.epochs[e] for e in shown], found.classes, found.mask_format.colours, width=asked.inches)


def _confidence(run: Run, asked: Asked) -> Figure:
    from pellucid.figures import confidence_sheet
    from pellucid.figures.masks import mask_row

    found = mask_findings.load_mask_findings(run.inside)
    i, epoch = _which(asked, len(found.pictures)), found.epochs[-1] if asked.epoch is None else _one_of(asked.epoch, found.epochs)
    return confidence_sheet([mask_row(run.inside, found, i, [found.epochs.index(epoch)])], [epoch], width=asked.inches)


def _words(run: Run, asked: Asked) -> Figure:
    from pellucid.figures import words_strip

    found = word_findings.load_words(run.inside)
    i = _which(asked, len(found.images))
    maps = word_maps(run.inside, found)[i]
    return words_strip(_photo(run, i), found.images[i], maps, how=found.how, scores=found.scores.get(CHOSEN), width=asked.inches)


def _word_scores(run: Run, asked: Asked) -> Figure:
    from pellucid.figures import word_scores_figure

    return word_scores_figure(word_findings.load_words(run.inside), width=asked.inches)


# ── the list ────────────────────────────────────────────────────────────────────────────────────────────────────

_EPOCHS = "training writes it after its first epoch"
_PREDICTED = "training writes predictions when it has measured a split (train.measure)"
_PICTURES = "inside.samples or inside.images of the recipe, above 0 and with methods that fit the model, keep maps"
_FEATURES = "inside.features above 0 and inside.projections of the recipe keep it"
_MASKS = "inside.samples or inside.images of the recipe keep masks at inside.epochs"
_WORDS = "inside.samples or inside.images of the recipe keep the maps of words"
_RATE = Plate("the learning rate by step", kept.rate, _learning_rate, _EPOCHS)
_SEEN: dict[str, Plate] = {
    "attention": Plate("a picture with the map of each method, and their scores", kept.maps, _attention, _PICTURES, ("picture", "epoch")),
    "heads": Plate("the attention of each head of a layer over a picture", kept.arrays("heads/"), _heads, _PICTURES, ("picture", "layer")),
    "epochs": Plate("the first map of a picture over the epochs", kept.epochs, _epochs, f"{_PICTURES} at inside.epochs", ("picture",)),
    "scores": Plate(
        "how far the maps can be believed, beside the baselines", kept.scores, _scores, "masks of the targets (inside.masks of the recipe) allow it"
    ),
    "positions": Plate(
        "the similarity of position embeddings, a grid of grids",
        kept.arrays("positions"),
        _positions,
        "an inside section in the recipe, of a model with position embeddings, keeps them",
    ),
    "bias": Plate(
        "the relative-position bias of each head",
        kept.arrays("bias/"),
        _bias,
        "an inside section in the recipe, of a model with a relative-position bias such as Swin or MaxViT, keeps it",
    ),
}
_PLANES: dict[str, Plate] = {
    "pca-last": Plate("features over epochs on the plane of the last one", *_projection("pca-last"), _FEATURES, ("epoch",)),
    "pca-each": Plate("features over epochs, each on its own plane", *_projection("pca-each"), _FEATURES, ("epoch",)),
    "tsne": Plate("features over epochs by t-SNE", *_projection("tsne"), _FEATURES, ("epoch",)),
}
FIGURES: dict[str, dict[str, Plate]] = {  # by task
    "classification": {
        "overview": Plate("pictures with predictions, curves and confusion together", kept.predictions, _overview, _PREDICTED, ("split",)),
        "curves": Plate("loss and accuracy by epoch", kept.points("loss", "accuracy"), _classification_curves, _EPOCHS),
        "loss": Plate("loss by epoch", kept.points("loss"), lambda run, asked: _classification_curves(run, asked, accuracy=False), _EPOCHS),
        "accuracy": Plate("accuracy by epoch", kept.points("accuracy"), lambda run, asked: _classification_curves(run, asked, loss=False), _EPOCHS),
        "learning-rate": _RATE,
        "confusion": Plate("labels against predictions", kept.predictions, _confusion, _PREDICTED, ("split",)),
        "reliability": Plate("accuracy against confidence", kept.predictions, _reliability, _PREDICTED, ("split",)),
        "mistakes": Plate(
            "the most confident mistakes", kept.mistakes, _mistakes, "training keeps pictures of mistakes of the splits that it measures", ("split",)
        ),
        **_PLANES,
        **_SEEN,
    },
    "pretraining": {
        "curves": Plate("the loss and what the features are worth, by epoch", *_chart("loss", "knn_accuracy"), _EPOCHS),
        "loss": Plate("loss by epoch", *_chart("loss"), _EPOCHS),
        "knn-accuracy": Plate("k-NN accuracy of the features by epoch", *_chart("knn_accuracy"), "probe of the recipe, on labelled splits, measures it"),
        "collapse": Plate("spread and effective rank of the projections", *_chart("spread", "rank"), _EPOCHS),
        "alignment-uniformity": Plate("alignment and uniformity of the projections", *_chart("alignment", "uniformity"), _EPOCHS),
        "learning-rate": _RATE,
        "neighbours": Plate(
            "images beside the training images whose features are most similar", kept.neighbours, near_figure, "training keeps it with a labelled val"
        ),
        "views": Plate("training images and their two views", kept.views, views_figure, "training keeps pictures of its first epoch"),
        **_PLANES,
        **_SEEN,
    },
    "segmentation": {
        "curves": Plate("loss, pixel accuracy and mIoU by epoch", kept.points("loss", "accuracy", "miou"), _mask_curves, _EPOCHS),
        "learning-rate": _RATE,
        "iou": Plate("IoU of each class with its interval", kept.ious, _ious, _PREDICTED, ("split",)),
        "confusion": Plate("pixels: labels against predictions", kept.predictions, _confusion, _PREDICTED, ("split",)),
        "reliability": Plate("pixels: accuracy against confidence", kept.predictions, _reliability, _PREDICTED, ("split",)),
        "hardest": Plate("the images with the lowest pixel accuracy, their masks and predictions", kept.mistakes, hardest_figure, _PREDICTED, ("split",)),
        "masks": Plate("a picture, its ground truth, the masks over epochs and the errors", kept.masks, _masks, _MASKS, ("picture", "epoch")),
        "confidence": Plate("how sure the model is of each pixel, and where it errs", kept.masks, _confidence, _MASKS, ("picture", "epoch")),
        **_PLANES,
        **_SEEN,
    },
    "captioning": {
        "curves": Plate("loss and token accuracy by epoch", *_chart("loss", "token_accuracy"), _EPOCHS),
        "loss": Plate("loss by epoch", *_chart("loss"), _EPOCHS),
        "token-accuracy": Plate("token accuracy by epoch", *_chart("token_accuracy"), _EPOCHS),
        "captions": Plate("CIDEr-D and exact match by epoch, beside captions that look at nothing", *_chart("cider", "exact_match"), _EPOCHS),
        "cider": Plate("CIDEr-D by epoch", *_chart("cider"), _EPOCHS),
        "exact-match": Plate("captions found word for word, by epoch", *_chart("exact_match"), _EPOCHS),
        "learning-rate": _RATE,
        "best": Plate("pictures with the best captions", kept.mistakes, captions_figure("best"), _PREDICTED, ("split",)),
        "worst": Plate("pictures with the worst captions", kept.mistakes, captions_figure("worst"), _PREDICTED, ("split",)),
        "words": Plate("a picture with the map of each word of its caption", kept.words, _words, _WORDS, ("picture",)),
        "word-scores": Plate(
            "how far the maps of words can be believed, beside the baselines", kept.word_scores, _word_scores, "data that says where things are allows it"
        ),
    },
}
OF_RUNS: dict[str, Any] = {  # of a folder in which runs lie
    "curves": Plate("validation by epoch, a colour for each recipe, a line for each of its seeds", *runs_curves("val"), _EPOCHS),  # type: ignore[arg-type]
    "loss": Plate("the loss of training by epoch, in the same way", *runs_curves("train"), _EPOCHS),  # type: ignore[arg-type]
}
OF_STUDIES: dict[str, Any] = {
    "curves": Plate("validation by epoch: mean and range over the seeds of each setting", study_has("bands"), study_curves_figure, "finished runs have it"),  # type: ignore[arg-type]
    "classes": Plate("a number of single classes in every setting", study_has("dots"), study_classes_figure, "a measure that has one for each class has it"),  # type: ignore[arg-type]
}


# ── parts ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _opened(folder: Path) -> Any:
    """A study, the runs that lie in a folder (its seeds, where it has seeds.json), or a run."""
    if (folder / "study.json").is_file():
        return StudyFolder(folder)
    return runs_in(folder) or Run(folder)


def _plates(folder: Path) -> Mapping[str, Plate]:
    opened = _opened(folder)
    return FIGURES[opened.recipe.task] if isinstance(opened, Run) else OF_STUDIES if isinstance(opened, StudyFolder) else OF_RUNS


def _target(folder: Path, name: str, formats: Sequence[str] | None, out: Path | None) -> tuple[list[str], Path]:
    """The formats, and the path without an ending."""
    ending = "" if out is None else out.suffix.lower().removeprefix(".")
    for one in formats or []:
        if one not in FORMATS:
            raise UsageError(f"--format: expected {', '.join(FORMATS)}, got {one!r}.{did_you_mean(one, FORMATS)}")
    if out is None or out.is_dir() or not ending:
        return list(dict.fromkeys(formats or FORMATS)), (folder / "figures" / "paper" if out is None else out) / name
    if ending not in FORMATS:
        raise UsageError(f"--out: expected a folder, or a file that ends in {', '.join(f'.{one}' for one in FORMATS)}; got {out}")
    if formats and list(formats) != [ending]:
        raise UsageError(f"--out {out} is a {ending} file, and --format asks for {', '.join(formats)}; a folder takes several formats")
    return [ending], out.with_suffix("")


def _which(asked: Asked, count: int) -> int:
    """The chosen picture, counted from 0 as the arrays are; the first where none is named."""
    chosen = 1 if asked.picture is None else asked.picture
    if chosen > count:
        raise UsageError(f"--picture: the run looked at {count:,} pictures, counted from 1; got {chosen:,}")
    return chosen - 1


def _one_of(epoch: int, epochs: Sequence[int]) -> int:
    if epoch not in epochs:
        raise UsageError(f"--epoch: the run kept it after {', '.join(map(str, epochs))} (inside.epochs of the recipe), got {epoch}")
    return epoch


def _spread(count: int) -> list[int]:
    """At most PANELS of the indices below `count`, the first and the last among them."""
    return [int(i) for i in np.unique(np.linspace(0, count - 1, min(PANELS, count)).round())]


def _inside(run: Run) -> tuple[findings.Findings, dict[str, NDArray[Any]]]:
    return findings.load_findings(run.inside), read_arrays(run.inside / findings.ARRAYS, "what was found inside")


def _photo(run: Run, i: int) -> NDArray[np.uint8]:
    return _picture(run.inside / findings.IMAGES / f"{i}.webp")


def _picture(path: Path) -> NDArray[np.uint8]:
    """(H, W, 3) uint8; RunError where the file is gone or damaged."""
    try:
        return np.asarray(read_picture(path).convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:  # what Pillow raises on damaged files
        raise RunError(f"{path}: cannot be read as a picture: {error}; the folder was changed") from None
