"""Figures of what was seen inside a model, from arrays alone: attention on photographs, heads, epochs, positions, scores.

Photos are (H, W, 3) uint8 RGB, maps (gh, gw) >= 0, views (top, left, height, width) in pixels of the photo (see `overlays`).
Every map is drawn from 0 to its own maximum, so colours of two maps do not compare in size; the figures say so.
No score is drawn without its baselines: a measure that has none is named as left out.
width: of the whole figure in inches, on paper (`style.fitted`); None: its own, for screens.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from pellucid.errors import UsageError
from pellucid.figures.overlays import SIMILARITY_COLOURS, View, grid_of_grids, overlay, reduced
from pellucid.figures.style import BOLD_LETTERS, COLOURS, LETTERS, NOTES, STYLE, fitted, in_line, plain_text
from pellucid.findings import ImageFinding, Score, fitted_view, hardest_baseline
from pellucid.run import rounded

SHEET_SIDE, TILE_SIDE = 480, 160  # pixels of a photo's long side in a sheet, and in a table of layers and heads
OWN_SCALE = "Each map runs from 0 (dark) to its own maximum (bright)."
_MARKS = ("d", "x", "s", "+", "^", "v", "<", ">")  # of baselines, the second channel beside colour


def attention_sheet(
    photo: NDArray[np.uint8], finding: ImageFinding, maps: Mapping[str, ArrayLike], scores: Sequence[Score] = (), *, width: float | None = None
) -> Figure:
    """One image: the photo, its map of each method with its scores beside the baselines, and its flags.

    maps: {method: (gh, gw)}. scores: of the whole set; the baselines beside an image's own score are their means over the set.
    finding.view is in pixels of a photo of finding.size (height, width); `photo` may be a smaller copy of it.
    With a width, of the baselines the hardest to beat alone stands beside a score.
    """
    picture, view = reduced(photo, fitted_view(finding, photo), SHEET_SIDE)
    tiles = [("photo", picture), *((method, overlay(picture, values, view)) for method, values in maps.items())]
    columns = min(len(tiles), 4) if width is None else in_line(len(tiles), width, least=1.7)
    rows = -(-len(tiles) // columns)
    tables = {method: _table(finding, method, scores) if width is None else _narrow_table(finding, method, scores) for method in maps}
    most = max([0, *(len(table) for table in tables.values())])
    across, side = (3.7 * columns, 3.2) if width is None else (width, 0.94 * width / columns)
    tall, text = side * picture.shape[0] / picture.shape[1], 0.3 + (0.17 if width is None else 0.23) * most
    sentences = [*finding.flags, *_left_out(finding, scores), _set_size(scores), OWN_SCALE]
    notes = _wrapped(sentences, columns * 42 if width is None else int(LETTERS * width))
    size = (across, 0.5 + rows * (tall + 0.35 + text) + 0.18 * (notes.count("\n") + 1))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        title = _title(finding) if width is None else textwrap.fill(_title(finding), int(BOLD_LETTERS * width))
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
        figure.supxlabel(plain_text(notes), x=0.01, ha="left", fontsize=8 if width is None else NOTES)
        cells = figure.subplots(2 * rows, columns, squeeze=False, height_ratios=[tall, text] * rows)
        for axes in cells.flat:
            axes.set_axis_off()
        for i, (name, tile) in enumerate(tiles):
            above, below = cells[2 * (i // columns), i % columns], cells[2 * (i // columns) + 1, i % columns]
            above.imshow(tile)
            above.set_title(plain_text(name), fontsize=9)
            if i:
                _draw_table(below, tables[name], most)
    return fitted(figure, width)


def heads_sheet(
    photo: NDArray[np.uint8],
    maps: ArrayLike,
    names: Sequence[str] = (),
    *,
    view: View | None = None,
    measured: Sequence[str] = (),
    width: float | None = None,
) -> Figure:
    """The map of every head over the photo: maps (h, gh, gw), or (L, h, gh, gw) as a table of layers by heads.

    names: of the layers, L of them (one or none for a single layer). Heads, layers and positions are counted from 1. measured: a line for each head of a single
    layer, that says how far its map can be believed.
    """
    values = np.asarray(maps, dtype=np.float64)
    single = values.ndim == 3
    values = values[None] if single else values
    if values.ndim != 4 or (names and len(names) != len(values)):
        raise UsageError(f"expected maps (h, gh, gw) or (layers, h, gh, gw) and a name for each layer, got {np.shape(maps)} and {len(names)} names")
    layers, heads = values.shape[:2]
    if single:
        picture, seen = reduced(photo, view, SHEET_SIDE)
        tiles = [overlay(picture, values[0, i], seen) for i in range(heads)]
        return _sheet(tiles, _under([f"head {i + 1}" for i in range(heads)], measured), f"Heads of {names[0]}" if names else "Heads", width)
    picture, seen = reduced(photo, view, TILE_SIDE)
    height, across, gap = *picture.shape[:2], 4
    table = np.full((layers, height + gap, heads, across + gap, 3), 255, dtype=np.uint8)
    for i in range(layers):
        for j in range(heads):
            table[i, :height, j, :across] = overlay(picture, values[i, j], seen)
    image = table.reshape(layers * (height + gap), heads * (across + gap), 3)[:-gap, :-gap]
    inches = min(1.15, 15 / heads if width is None else (width - 1.2) / heads)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(inches * heads + 1.6 if width is None else width, inches * layers * height / across + 0.9), layout="constrained")
        axes = figure.add_subplot()
        _picture(axes, image)
        axes.set_xticks(np.arange(heads) * (across + gap) + across / 2, [str(i + 1) for i in range(heads)])
        rows = [plain_text(name) for name in names] or [str(i + 1) for i in range(layers)]
        axes.set_yticks(np.arange(layers) * (height + gap) + height / 2, rows, fontsize=7)
        axes.set(xlabel=f"head. {OWN_SCALE}" if width is None else textwrap.fill(f"head. {OWN_SCALE}", int(BOLD_LETTERS * (width - 1.2))), ylabel="layer")
    return fitted(figure, width)


def epochs_strip(
    photo: NDArray[np.uint8],
    maps: ArrayLike,
    epochs: Sequence[int],
    *,
    view: View | None = None,
    title: str = "",
    measured: Sequence[str] = (),
    width: float | None = None,
) -> Figure:
    """One map over epochs, beside each other: maps (E, gh, gw), epochs counted from 1; measured: a line for each."""
    values = np.asarray(maps, dtype=np.float64)
    if values.ndim != 3 or len(values) != len(epochs) or not len(epochs):
        raise UsageError(f"expected maps (epochs, gh, gw) for {len(epochs)} epochs, got shape {values.shape}")
    picture, seen = reduced(photo, view, SHEET_SIDE)
    names = _under([f"epoch {epoch}" for epoch in epochs], measured)
    return _sheet([picture, *(overlay(picture, one, seen) for one in values)], ["photo", *names], title, width)


def positions_figure(similarity: ArrayLike, *, how: str = "", limits: tuple[float, float] | None = None, width: float | None = None) -> Figure:
    """The grid of grids: at (i, j) the cosine similarity of position (i, j) with every position, laid out as the positions are.

    similarity: (gh, gw, gh, gw) in [-1, 1]. limits: ends of the colour scale; by default the lowest value and 1.
    """
    grids = grid_of_grids(similarity)
    gh, gw = np.shape(similarity)[:2]
    low, high = (float(np.nanmin(grids)), 1.0) if limits is None else limits
    across = 7.2 if width is None else width
    tall, letters = (max(2.5, 6.2 * gh / gw) + 0.7, 110) if width is None else (max(1.5, (width - 1.2) * gh / gw) + 1.3, int(LETTERS * width))
    title = f"Similarity of each of {gh} x {gw} positions with all others"
    title = title if width is None else textwrap.fill(title, int(BOLD_LETTERS * (width - 1.0)))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(across, tall), layout="constrained")
        axes = figure.add_subplot()
        drawn = axes.imshow(grids, cmap=SIMILARITY_COLOURS, vmin=low, vmax=high, interpolation="nearest")
        _bare(axes)
        for ticks, count in ((axes.set_xticks, gw), (axes.set_yticks, gh)):
            shown = np.arange(0, count, -(-count // 12))
            ticks(shown * (count + 1) + (count - 1) / 2, [str(i + 1) for i in shown])
        axes.set(xlabel="column of the position", ylabel="row of the position", title=title)
        figure.colorbar(drawn, ax=axes, label="cosine similarity", shrink=0.8)
        if how:
            figure.supxlabel(plain_text(textwrap.fill(how, letters)), x=0.01, ha="left", fontsize=8 if width is None else NOTES)
    return fitted(figure, width)


def bias_figure(bias: ArrayLike, *, name: str = "", width: float | None = None) -> Figure:
    """The relative-position bias of each head by offset, on one colour scale.

    bias: (h, 2 wh - 1, 2 ww - 1), the offset query - key of (0, 0) in its middle.
    """
    values = np.asarray(bias, dtype=np.float64)
    if values.ndim != 3 or not values.size or values.shape[1] % 2 == 0 or values.shape[2] % 2 == 0:
        raise UsageError(f"expected biases (heads, 2 rows - 1, 2 columns - 1), got shape {values.shape}")
    heads, tall, wide = values.shape
    columns = min(heads, 8) if width is None else in_line(min(heads, 8), width - 0.9, least=0.8)
    rows = -(-heads // columns)
    panel = 1.55 if width is None else (width - 0.9) / columns + 0.2
    extent = (-(wide // 2) - 0.5, wide // 2 + 0.5, tall // 2 + 0.5, -(tall // 2) - 0.5)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(4.0, 1.35 * columns + 1.4) if width is None else width, panel * rows * tall / wide + 1.2), layout="constrained")
        cells = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for axes in cells.flat:
            axes.set_axis_off()
        for i, axes in zip(range(heads), cells.flat, strict=False):
            axes.set_axis_on()
            drawn = axes.imshow(values[i], cmap=SIMILARITY_COLOURS, vmin=values.min(), vmax=values.max(), extent=extent, interpolation="nearest")
            axes.grid(False)
            axes.spines[:].set_visible(False)
            axes.set_title(f"head {i + 1}", fontsize=8, fontweight="normal")
        figure.colorbar(drawn, ax=cells, label="added to the logit", shrink=0.8)
        figure.supxlabel("offset in columns (query - key)", fontsize=8)
        figure.supylabel("offset in rows", fontsize=8)
        figure.suptitle(plain_text(f"Relative-position bias {name}".strip()), x=0.01, ha="left", fontsize=10, fontweight="bold")
    return fitted(figure, width)


def scores_figure(scores: Sequence[Score], *, width: float | None = None) -> Figure:
    """For each measure a line for each method: its mean as a dot with its interval, and a mark for each baseline."""
    if not scores:
        raise UsageError("expected at least one score to draw, got none")
    measures = list(dict.fromkeys(score.measure for score in scores))
    methods = list(dict.fromkeys(score.method for score in scores))
    baselines = list(dict.fromkeys(name for score in scores for name in score.baselines))
    columns = min(len(measures), 3) if width is None else in_line(min(len(measures), 3), width - 1.2, least=1.9)
    rows = -(-len(measures) // columns)
    size = (3.4 * columns + 1.2, rows * (1.0 + 0.32 * len(methods)) + 0.5)
    names = [plain_text(method if width is None else textwrap.fill(method, 22)) for method in methods]
    size = size if width is None else (width, rows * (0.95 + 0.12 * sum(2 + name.count("\n") for name in names)) + 0.7)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        cells = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for axes in cells.flat[len(measures) :]:
            axes.set_axis_off()
        for axes, measure in zip(cells.flat, measures, strict=False):
            of_measure = {score.method: score for score in scores if score.measure == measure}
            for y, method in enumerate(methods):
                if method in of_measure:
                    _draw_score(axes, y, of_measure[method], baselines)
            score = next(iter(of_measure.values()))
            which = "higher" if score.higher_is_better else "lower"
            axes.set_title(plain_text(measure.replace("_", " ")))
            axes.set(xlabel=f"{score.value.unit}, {which} is better{' ' if width is None else chr(10)}(n = {score.value.n:,})", ylim=(len(methods) - 0.5, -0.5))
            axes.set_yticks(range(len(methods)), names)
        marks = {text: handle for axes in figure.axes for handle, text in zip(*axes.get_legend_handles_labels(), strict=True)}
        across = 6 if width is None else max(1, int(width / 1.4))
        figure.legend(list(marks.values()), list(marks), loc="outside lower center", ncols=min(len(marks), across), fontsize=8)
    return fitted(figure, width)


# ── parts ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _under(names: Sequence[str], lines: Sequence[str]) -> list[str]:
    """Each name with its line below, where there are lines."""
    return [f"{name}\n{line}" for name, line in zip(names, lines, strict=True)] if lines else list(names)


def _sheet(tiles: Sequence[NDArray[np.uint8]], titles: Sequence[str], title: str, width: float | None) -> Figure:
    """Pictures of one size beside each other, up to six in a line."""
    columns = min(len(tiles), 6) if width is None else in_line(min(len(tiles), 6), width, least=1.1)
    rows = -(-len(tiles) // columns)
    across, side = (max(2.2 * columns, 4.5), 2.1) if width is None else (width, width / columns)
    tall = side * tiles[0].shape[0] / tiles[0].shape[1]
    titles = titles if width is None else [name.replace(" (", "\n(") for name in titles]
    title = title if width is None else textwrap.fill(title, int(BOLD_LETTERS * width))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(across, rows * (tall + 0.3 + 0.15 * max(name.count("\n") for name in titles)) + 0.7), layout="constrained")
        if title:
            figure.suptitle(plain_text(title), x=0.01, ha="left", fontsize=10, fontweight="bold")
        figure.supxlabel(OWN_SCALE, x=0.01, ha="left", fontsize=8 if width is None else NOTES)
        cells = figure.subplots(rows, columns, squeeze=False)
        for axes in cells.flat:
            axes.set_axis_off()
        for axes, tile, name in zip(cells.flat, tiles, titles, strict=False):
            axes.imshow(tile)
            axes.set_title(name, fontsize=8, fontweight="normal")
    return fitted(figure, width)


def _picture(axes: Axes, image: NDArray[np.uint8]) -> None:
    axes.imshow(image, interpolation="antialiased")
    _bare(axes)


def _bare(axes: Axes) -> None:
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def _title(finding: ImageFinding) -> str:
    said = [] if finding.label is None else [f"label {finding.label}"]
    if finding.prediction is not None:
        said.append(f"prediction {finding.prediction}" + ("" if finding.confidence is None else f" {rounded(finding.confidence)}"))
    return plain_text(finding.file + (f": {', '.join(said)}" if said else ""))


def _table(finding: ImageFinding, method: str, scores: Sequence[Score]) -> list[list[str]]:
    """Header and rows: a measure of this image, its mean over the set, and the mean of each baseline. Measures without a baseline are not in it."""
    with_baseline = {score.measure: score for score in scores if score.method == method and score.baselines}
    own = {measure: value for measure, value in finding.scores.get(method, {}).items() if measure in with_baseline}
    if not own:
        return []
    names = list(dict.fromkeys(name for measure in own for name in with_baseline[measure].baselines))
    table = [["", "this image", "mean", *names]]
    for measure, value in own.items():
        score = with_baseline[measure]
        beside = [str(score.baselines[name]) if name in score.baselines else "" for name in names]
        table.append([measure.replace("_", " "), rounded(value, score.value.unit), str(score.value), *beside])
    return table


def _narrow_table(finding: ImageFinding, method: str, scores: Sequence[Score]) -> list[list[str]]:
    """The same in three columns: a measure of this image, its mean over the set, and of the baselines the mean of the hardest to beat, named."""
    with_baseline = {score.measure: score for score in scores if score.method == method and score.baselines}
    rows = []
    for measure, value in finding.scores.get(method, {}).items():
        if score := with_baseline.get(measure):
            best = hardest_baseline(score)
            rows.append([measure.replace("_", " "), rounded(value, score.value.unit), str(score.value), f"{score.baselines[best]}\n{best}"])
    return [["", "image", "mean", "best\nbaseline"], *rows] if rows else []


def _left_out(finding: ImageFinding, scores: Sequence[Score]) -> list[str]:
    known = {(score.method, score.measure) for score in scores if score.baselines}
    bare = sorted({measure.replace("_", " ") for method, own in finding.scores.items() for measure in own if (method, measure) not in known})
    return [f"Left out, as it has no baseline: {', '.join(bare)}."] if bare else []


def _set_size(scores: Sequence[Score]) -> str:
    sizes = sorted({score.value.n for score in scores if score.baselines})
    return f"Mean and baselines are over {' to '.join(f'{n:,}' for n in dict.fromkeys([sizes[0], sizes[-1]]))} images." if sizes else ""


def _draw_table(axes: Axes, table: Sequence[Sequence[str]], most: int) -> None:
    axes.set(xlim=(0, 1), ylim=(most + 0.6, -0.6))
    for i, row in enumerate(table):
        ends = (0.44, 0.63, 1.0) if len(row) == 4 else [0.27 + j * 0.73 / (len(row) - 1) for j in range(1, len(row))]  # right ends of the columns
        for j, text in enumerate(row):
            x, shown = (0.0, text) if j == 0 else (ends[j - 1], text if "\n" in text else textwrap.fill(text, 8))
            axes.text(
                x, i, plain_text(shown), ha="left" if j == 0 else "right", va="bottom" if i == 0 else "center", fontsize=6.0 if len(row) == 4 else 6.5,
                fontweight="bold" if i and j == 1 else "normal", color="#59616b" if i == 0 else "black",
            )  # fmt: skip


def _draw_score(axes: Axes, y: int, score: Score, baselines: Sequence[str]) -> None:
    low, high = score.value.interval or (score.value.value, score.value.value)
    axes.plot([score.value.value], [y], "o", color=COLOURS[0], markersize=6, label="method")
    axes.plot([low, high], [y, y], color=COLOURS[0], linewidth=2.2, label="its 95 % interval" if score.value.interval else "_nolegend_")
    for i, name in enumerate(baselines):
        if name in score.baselines:
            colour = ("#000000", *COLOURS[1:-1])[i % 6]
            axes.plot([score.baselines[name].value], [y], _MARKS[i % len(_MARKS)], color=colour, markersize=6, linestyle="none", label=plain_text(name))


def _wrapped(sentences: Sequence[str], width: int) -> str:
    return "\n".join(textwrap.fill(sentence, width) for sentence in sentences if sentence)
