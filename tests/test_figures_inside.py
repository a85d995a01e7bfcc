from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import PIL.Image
import pytest
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from fabricate_inside import EPOCHS, all_scores, blob, image_finding, measured, panel, photo, projected, similarity
from pellucid import figures
from pellucid.errors import UsageError
from pellucid.figures import overlays, projections
from pellucid.findings import Score, fitted_view


def hot(grid: tuple[int, int], row: int, column: int) -> np.ndarray:
    values = np.zeros(grid)
    values[row, column] = 0.3
    return values


# ── a map on a photo ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("view", [None, (20.0, 30.0, 120.0, 160.0)])
@pytest.mark.parametrize("patch", [(0, 0), (1, 2), (2, 4), (4, 7)])
def test_a_hot_patch_lies_on_its_own_rectangle(view: tuple[float, float, float, float] | None, patch: tuple[int, int]) -> None:
    size, grid = (160, 256), (5, 8)
    top, left, height, width = view or (0.0, 0.0, *size)
    drawn = figures.overlay(np.full((*size, 3), 128, dtype=np.uint8), hot(grid, *patch), view)
    rows, columns = np.nonzero(drawn[..., 0] > 185)  # red, which grows with the map: here more than 0.6 of its maximum
    inner, outer = (top + patch[0] * height / 5, left + patch[1] * width / 8), (top + (patch[0] + 1) * height / 5, left + (patch[1] + 1) * width / 8)
    assert inner[0] <= rows.min()
    assert rows.max() < outer[0]
    assert inner[1] <= columns.min()
    assert columns.max() < outer[1]
    middle = int((inner[0] + outer[0]) / 2), int((inner[1] + outer[1]) / 2)
    assert drawn[middle].tolist() == pytest.approx([227, 230, 157], abs=20)  # 0.8 of the brightest colour
    assert rows.max() - rows.min() > 0.6 * height / 5
    assert columns.max() - columns.min() > 0.6 * width / 8


def test_stretching_is_pillows_bicubic_on_a_whole_rectangle() -> None:
    values = np.random.default_rng(0).random((5, 7)).astype(np.float32)
    expected = np.asarray(PIL.Image.fromarray(values).resize((63, 40), PIL.Image.Resampling.BICUBIC))
    found = overlays.stretched(values, (60, 80), (11.0, 9.0, 40.0, 63.0))
    assert np.allclose(found[11:51, 9:72], expected, atol=1e-5)


def slow_overlay(pixels: np.ndarray, values: np.ndarray, view: tuple[float, float, float, float]) -> np.ndarray:
    """The definition, pixel by pixel in float64."""

    def cubic(t: float) -> float:
        t = abs(t)
        return 1.5 * t**3 - 2.5 * t**2 + 1 if t < 1 else -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2 if t < 2 else 0.0

    top, left, height, width = view
    result = np.zeros_like(pixels)
    scaled = values / values.max()
    for y in range(pixels.shape[0]):
        for x in range(pixels.shape[1]):
            r, g, b = (float(v) for v in pixels[y, x])
            if not (top <= y + 0.5 < top + height and left <= x + 0.5 < left + width):
                result[y, x] = [round(0.25 * v) for v in (r, g, b)]
                continue
            at = (y + 0.5 - top) * values.shape[0] / height - 0.5, (x + 0.5 - left) * values.shape[1] / width - 0.5
            total = weights = 0.0
            for i in range(values.shape[0]):
                for j in range(values.shape[1]):
                    weight = cubic(at[0] - i) * cubic(at[1] - j)
                    total, weights = total + weight * scaled[i, j], weights + weight
            share = min(max(total / weights, 0.0), 1.0)
            grey, weight = 0.299 * r + 0.587 * g + 0.114 * b, 0.35 + 0.45 * share
            colour = [round(255 * c) for c in matplotlib.colormaps["inferno"](round(255 * share))[:3]]
            result[y, x] = [round((1 - weight) * grey + weight * c) for c in colour]
    return result


@pytest.mark.parametrize("view", [(0.0, 0.0, 24.0, 30.0), (2.5, -3.25, 19.0, 28.5), (20.0, 4.0, 30.0, 5.0)])
def test_the_blend_is_its_definition(view: tuple[float, float, float, float]) -> None:
    random = np.random.default_rng(1)
    pixels = random.integers(0, 256, (24, 30, 3), dtype=np.uint8)
    values = random.random((3, 4))
    found, expected = figures.overlay(pixels, values, view).astype(int), slow_overlay(pixels, values, view).astype(int)
    far = np.abs(found - expected)
    assert (far > 1).mean() < 0.01  # a value on the edge of two colours of the table may fall on either
    assert far.max() <= 3


def test_a_map_of_zeros_has_no_colour_and_the_photo_is_left_alone() -> None:
    pixels = photo(30, 40)
    before = pixels.copy()
    found = figures.overlay(pixels, np.zeros((3, 4)))
    assert found.shape == pixels.shape
    assert found.dtype == np.uint8
    assert int(np.ptp(found.astype(int), axis=2).max()) <= 2
    assert np.array_equal(pixels, before)


def test_the_scale_of_a_map_does_not_matter() -> None:
    values = blob((4, 6), 0.3, 0.6)
    assert np.array_equal(figures.overlay(photo(40, 60), values), figures.overlay(photo(40, 60), values * 64))


@pytest.mark.parametrize(
    ("pixels", "values", "view", "said"),
    [
        (np.zeros((4, 4), np.uint8), np.ones((2, 2)), None, r"photo of shape \(H, W, 3\) in uint8, got uint8 \(4, 4\)"),
        (np.zeros((4, 4, 3)), np.ones((2, 2)), None, "got float64"),
        (photo(4, 4), np.ones(4), None, r"a map \(gh, gw\) of finite numbers >= 0, got shape \(4,\)"),
        (photo(4, 4), np.array([[1.0, -0.1]]), None, "lowest -0.1"),
        (photo(4, 4), np.array([[1.0, np.nan]]), None, "finite"),
        (photo(4, 4), np.ones((2, 2)), (0.0, 0.0, 0.0, 4.0), "view .* that overlaps a photo of 4 x 4"),
        (photo(4, 4), np.ones((2, 2)), (9.0, 0.0, 4.0, 4.0), "that overlaps"),
    ],
)
def test_what_is_no_photo_map_or_view_is_refused(pixels: np.ndarray, values: np.ndarray, view: overlays.View | None, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        figures.overlay(pixels, values, view)


def test_a_reduced_photo_keeps_its_view_in_place() -> None:
    small, view = overlays.reduced(photo(600, 800), (60.0, 80.0, 300.0, 400.0), 200)
    assert small.shape == (150, 200, 3)
    assert view == pytest.approx((15.0, 20.0, 75.0, 100.0))
    same, whole = overlays.reduced(photo(30, 40), None, 200)
    assert (same.shape, whole) == ((30, 40, 3), (0.0, 0.0, 30.0, 40.0))


def test_colours_get_lighter_with_the_value() -> None:
    for name in (overlays.MAP_COLOURS, overlays.SIMILARITY_COLOURS):
        grey = overlays.coloured(np.linspace(0, 1, 256), name) @ np.array([0.299, 0.587, 0.114])
        assert (np.diff(grey) > -0.5).all()
        assert grey[-1] - grey[0] > 150


# ── sheets ───────────────────────────────────────────────────────────────────────────────────────────────────────


def texts(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text")))  # type: ignore[attr-defined]


def test_a_sheet_names_the_image_and_puts_a_baseline_beside_each_score() -> None:
    finding = image_finding(0, (120, 160))
    maps = {"attention": blob((4, 6), 0.4, 0.4), "grad_cam": blob((2, 3), 0.4, 0.4)}
    figure = figures.attention_sheet(photo(120, 160), finding, maps, all_scores())
    said = texts(figure)
    assert "val/00000_cat.jpg: label cat, prediction dog 0.9100" in said
    assert "attention: 41 % of it lies on prefix tokens." in said
    assert "Mean and baselines are over 300 images." in said
    assert [axes.get_title(loc="left") for axes in figure.axes if axes.images] == ["photo", "attention", "grad_cam"]
    below = [[text.get_text().replace("\n", " ") for text in axes.texts] for axes in figure.axes if axes.texts]
    header = ["", "this image", "mean", "uniform", "centre", "shuffled", "random model"]
    assert below[0][:14] == [*header, "pointing game", "0.0000", "0.7100", "0.3100", "0.5200", "0.3000", "0.2900"]
    assert "0.4000" in below[0]


def test_a_score_without_a_baseline_is_left_out_and_named() -> None:
    finding = image_finding(1, (120, 160))
    scores = [Score("attention", "relevance_mass", measured("relevance_mass[attention]", 0.41), {})]
    said = texts(figures.attention_sheet(photo(120, 160), finding, {"attention": blob((4, 6), 0.4, 0.4)}, scores))
    assert "Left out, as it has no baseline: pointing game, relevance mass." in said
    assert "0.4100" not in said


def test_a_picture_of_another_shape_than_the_finding_says_is_refused() -> None:
    finding = image_finding(0, (120, 160))
    assert fitted_view(finding, photo(60, 80)) == (0.0, 10.0, 60.0, 60.0)
    with pytest.raises(UsageError, match="expected a picture of 120 x 160 pixels or a smaller copy, got 160 x 120"):
        fitted_view(finding, photo(160, 120))


def test_every_head_and_layer_has_its_place() -> None:
    maps = np.stack([[hot((3, 3), i, j) for j in range(3)] for i in range(2)])  # layer i, head j
    figure = figures.heads_sheet(photo(60, 90), maps, ["first", "second"])
    (axes,) = figure.axes
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["first", "second"]
    image = np.asarray(axes.images[0].get_array()).astype(int)
    assert image.shape == (2 * 60 + 4, 3 * 90 + 2 * 4, 3)
    for i in range(2):
        for j in range(3):
            tile = image[i * 64 : i * 64 + 60, j * 94 : j * 94 + 90]
            y, x = np.unravel_index(np.argmax(tile[..., 0] - tile[..., 2]), tile.shape[:2])
            assert (int(y) // 20, int(x) // 30) == (i, j)
    single = figures.heads_sheet(photo(60, 90), maps[0], ["blocks.3.attn"])
    assert [axes.get_title(loc="left") for axes in single.axes] == ["head 1", "head 2", "head 3"]
    with pytest.raises(UsageError, match="a name for each layer"):
        figures.heads_sheet(photo(60, 90), maps, ["one"])


def test_epochs_stand_beside_the_photo_in_order() -> None:
    figure = figures.epochs_strip(photo(60, 90), np.stack([hot((3, 3), 1, 1)] * 3), EPOCHS, title="attention")
    assert [axes.get_title(loc="left") for axes in figure.axes if axes.images] == ["photo", "epoch 1", "epoch 3", "epoch 6"]
    with pytest.raises(UsageError, match=r"expected maps \(epochs, gh, gw\) for 2 epochs"):
        figures.epochs_strip(photo(60, 90), np.ones((3, 3, 3)), [1, 2])


# ── positions ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_grid_of_grids_puts_the_map_of_each_position_at_its_place() -> None:
    values = np.random.default_rng(2).uniform(-1, 1, (3, 4, 3, 4)).astype(np.float32)
    found = overlays.grid_of_grids(values)
    assert found.shape == (3 * 4 - 1, 4 * 5 - 1)
    for i, j, k, m in np.ndindex(3, 4, 3, 4):
        assert found[i * 4 + k, j * 5 + m] == values[i, j, k, m]
    assert np.isnan(found).sum() == found.size - values.size
    with pytest.raises(UsageError, match=r"\(gh, gw, gh, gw\); got shape \(3, 4, 4, 3\)"):
        overlays.grid_of_grids(np.zeros((3, 4, 4, 3)))


def test_positions_are_one_image_with_a_scale_and_named_axes() -> None:
    figure = figures.positions_figure(similarity((24, 24)), how="from pos_embed")
    axes, bar = figure.axes
    assert len(axes.images) == 1
    assert axes.images[0].get_clim() == pytest.approx((float(similarity((24, 24)).min()), 1.0))
    assert (axes.get_xlabel(), axes.get_ylabel(), bar.get_ylabel()) == ("column of the position", "row of the position", "cosine similarity")
    assert "from pos_embed" in texts(figure)


def test_biases_share_one_scale_and_know_their_offsets() -> None:
    bias = np.random.default_rng(3).normal(size=(3, 5, 7))
    heads = [axes for axes in figures.bias_figure(bias).axes if axes.images]
    assert [axes.get_title(loc="left") for axes in heads] == ["head 1", "head 2", "head 3"]
    for i, axes in enumerate(heads):
        assert np.array_equal(axes.images[0].get_array(), bias[i])
        assert axes.images[0].get_clim() == (bias.min(), bias.max())
        assert axes.images[0].get_extent() == [-3.5, 3.5, 2.5, -2.5]
    with pytest.raises(UsageError, match="2 rows - 1"):
        figures.bias_figure(np.zeros((3, 4, 4)))


# ── projections and scores ───────────────────────────────────────────────────────────────────────────────────────


def test_panels_have_the_same_axes_their_numbers_and_all_their_points() -> None:
    coordinates, labels = projected(200, 3)
    figure = figures.projection_figure(coordinates, labels, ["cat", "dog", "owl"], [panel(e) for e in EPOCHS], "PCA fitted on the last epoch")
    assert len({(axes.get_xlim(), axes.get_ylim()) for axes in figure.axes}) == 1
    for e, axes in enumerate(figure.axes):
        drawn = np.concatenate([np.asarray(c.get_offsets()) for c in axes.collections if isinstance(c, PathCollection)])
        assert sorted(map(tuple, drawn.tolist())) == sorted(map(tuple, coordinates[e].astype(np.float64).tolist()))
        assert axes.get_title(loc="left") == f"epoch {EPOCHS[e]}"
        shown, numbers = axes.get_xlabel(), panel(EPOCHS[e])
        for m in (numbers.knn_accuracy, numbers.silhouette, numbers.plane_silhouette, numbers.neighbours_kept, numbers.trustworthiness):
            assert str(m) in shown
    assert "PCA fitted on the last epoch" in texts(figure)
    alone = [dataclasses.replace(panel(e), silhouette=None, plane_silhouette=None) for e in EPOCHS]
    assert "silhouette: features n/a, plane n/a" in texts(figures.projection_figure(coordinates, labels * 0, ["cat"], alone, "how"))


def test_twenty_classes_differ_in_colour_or_marker_and_the_rest_is_grey() -> None:
    assert len({(projections.COLOURS[i % 7], projections.MARKERS[i % 8]) for i in range(projections.NAMED)}) == 20
    coordinates, labels = projected(400, 25)
    figure = figures.projection_figure(coordinates, labels, [f"c{i}" for i in range(25)], [panel(e) for e in EPOCHS], "how")
    (legend,) = figure.legends
    counts = np.bincount(labels, minlength=25)
    names = [text.get_text() for text in legend.get_texts()]
    assert names[-1] == "other classes"
    assert len(names) == 21
    assert min(counts[int(name[1:])] for name in names[:-1]) >= max(counts[i] for i in range(25) if f"c{i}" not in names)


def test_a_projection_that_does_not_fit_its_panels_or_labels_is_refused() -> None:
    coordinates, labels = projected(20, 3)
    panels = [panel(e) for e in EPOCHS]
    for points, of, said in (
        (coordinates[:2], labels, "for 3 panels"),
        (coordinates, labels[:-1], "expected 20 labels from 0 to 2"),
        (coordinates, labels + 1, "from 0 to 2"),
        (coordinates * np.nan, labels, "finite"),
    ):
        with pytest.raises(UsageError, match=said):
            figures.projection_figure(points, of, ["a", "b", "c"], panels, "how")


def test_scores_show_value_interval_and_every_baseline() -> None:
    figure = figures.scores_figure(all_scores())
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["pointing game", "relevance mass", "deletion"]
    pointing, _, deletion = figure.axes
    drawn = [(tuple(np.round(line.get_xdata(), 4)), float(line.get_ydata()[0])) for line in pointing.lines]
    assert ((0.71,), 0.0) in drawn
    assert ((0.66, 0.76), 0.0) in drawn
    assert {((value,), y) for value in (0.31, 0.52, 0.3, 0.29) for y in (0.0, 1.0)} <= set(drawn)
    assert deletion.get_xlabel() == "fraction, lower is better (n = 300)"
    (legend,) = figure.legends
    assert {text.get_text() for text in legend.get_texts()} == {
        "method", "its 95 % interval", "uniform", "centre", "shuffled", "random model"
    }  # fmt: skip
    with pytest.raises(UsageError, match="at least one score"):
        figures.scores_figure([])


def sheets() -> dict[str, Callable[[], Figure]]:
    coordinates, labels = projected(100, 3)
    maps = np.stack([blob((4, 6), 0.3, 0.5)] * 2)
    return {
        "attention": lambda: figures.attention_sheet(photo(60, 90), image_finding(0, (60, 90)), {"a": maps[0]}, all_scores()),
        "heads": lambda: figures.heads_sheet(photo(60, 90), maps[None]),
        "epochs": lambda: figures.epochs_strip(photo(60, 90), maps, [1, 2]),
        "positions": lambda: figures.positions_figure(similarity((5, 6))),
        "bias": lambda: figures.bias_figure(np.eye(5)[None]),
        "projection": lambda: figures.projection_figure(coordinates, labels, ["a", "b", "c"], [panel(e) for e in EPOCHS], "how"),
        "scores": lambda: figures.scores_figure(all_scores()),
    }


@pytest.mark.parametrize("name", sorted(sheets()))
def test_equal_sheets_are_equal_bytes(tmp_path: Path, name: str) -> None:
    draw = sheets()[name]
    one, two = (figures.save(draw(), tmp_path / copy / name, dpi=50) for copy in ("one", "two"))
    for first, second in zip(one, two, strict=True):
        assert first.read_bytes() == second.read_bytes()
        assert first.stat().st_size > 1000


def test_figures_of_the_inside_need_neither_torch_nor_pyplot() -> None:
    code = "import sys; sys.modules['matplotlib.pyplot'] = sys.modules['torch'] = None; from pellucid import figures; figures.overlay"
    subprocess.run([sys.executable, "-c", code], check=True)
