from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from matplotlib.figure import Figure

from fabricate import make_run
from pellucid import figures, readings
from pellucid.readings import Curve
from pellucid.run import Run

LOSS = [Curve("train", [1, 2, 3], [1.0, 0.6, 0.4], 0), Curve("val", [1, 2, 3], [1.1, None, 0.5], 1)]
ACCURACY = [Curve("val", [1, 2, 3], [0.5, 0.7, 0.8], 1)]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return make_run(tmp_path / "run", skill=2.0)


def test_equal_figures_are_saved_as_equal_bytes_without_a_date(tmp_path: Path) -> None:
    for name in ("one", "two"):
        figures.save(figures.learning_curves(LOSS, ACCURACY), tmp_path / name / "curves")
    for kind in ("png", "svg", "pdf"):
        one, two = ((tmp_path / name / f"curves.{kind}").read_bytes() for name in ("one", "two"))
        assert one == two
        assert len(one) > 1000
        assert b"Date" not in one
        assert b"dc:date" not in one


def test_save_keeps_a_dotted_name_and_returns_its_files(tmp_path: Path) -> None:
    written = figures.save(figures.learning_rate_curve(Curve("lr", [0, 1], [0.0, 1e-3])), tmp_path / "new" / "lr-0.001", formats=("svg",))
    assert written == [tmp_path / "new" / "lr-0.001.svg"]
    assert written[0].is_file()


def test_curves_hold_their_points_and_gaps() -> None:
    figure = figures.learning_curves(LOSS, ACCURACY)
    loss, accuracy = figure.axes
    assert loss.lines[0].get_ydata().tolist() == [1.0, 0.6, 0.4]
    assert np.isnan(loss.lines[1].get_ydata()[1])
    assert (loss.get_xlabel(), loss.get_ylabel(), accuracy.get_ylabel()) == ("epoch", "loss (nats)", "accuracy")
    assert loss.lines[0].get_linestyle() != loss.lines[1].get_linestyle()


def test_a_side_without_points_is_left_out_and_nothing_at_all_is_an_error() -> None:
    assert len(figures.learning_curves(LOSS, [Curve("val", [1], [None])]).axes) == 1
    with pytest.raises(ValueError, match="no curve has a point"):
        figures.learning_curves([], [])


def test_seeds_of_one_row_share_a_legend_entry() -> None:
    curves = [Curve("vit", [1, 2], [0.1, 0.2], 0), Curve("vit", [1, 2], [0.1, 0.3], 0), Curve("$resnet", [1, 2], [0.2, 0.1], 1)]
    (axes,) = figures.compare_curves(curves, y_label="accuracy").axes
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["vit", r"\$resnet"]
    assert len(axes.lines) == 3


def test_confusion_matrix_shows_counts_with_labels_down_and_predictions_across() -> None:
    (axes,) = figures.confusion_matrix(np.array([[8, 2], [0, 5]]), ["cat", "dog"]).axes
    assert {(text.get_position(), text.get_text()) for text in axes.texts} == {((0, 0), "8"), ((1, 0), "2"), ((1, 1), "5")}
    assert np.allclose(axes.images[0].get_array(), [[0.8, 0.2], [0.0, 1.0]])
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("label", "prediction")
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["cat", "dog"]


def test_a_matrix_of_a_hundred_classes_is_drawn_without_names(tmp_path: Path) -> None:
    figure = figures.confusion_matrix(np.eye(100, dtype=np.int64), [f"c{i}" for i in range(100)])
    assert not figure.axes[0].texts
    assert max(figure.get_size_inches()) < 11
    figures.save(figure, tmp_path / "matrix", ("png",))


def test_reliability_bars_are_the_accuracies() -> None:
    confidence = np.array([0.1, 0.5, 0.55, 0.9, 0.95, 1.0])
    bins = readings.calibrate(confidence, np.array([False, True, False, True, True, True]), split="val", seed=1)
    above, below = figures.reliability_diagram(bins).axes
    assert [bar.get_height() for bar in above.patches] == np.nan_to_num(bins.accuracies).tolist()
    assert [bar.get_height() for bar in below.patches] == bins.counts
    assert f"calibration error {bins.error}, n = 6" in [above.get_title(loc) for loc in ("left", "center")]


def test_names_with_dollars_and_underscores_are_drawn_as_they_are(tmp_path: Path) -> None:
    (file,) = figures.save(figures.confusion_matrix(np.eye(3, dtype=np.int64), ["$x^{", "_hidden", "a_b$"]), tmp_path / "m", ("svg",))
    text = file.read_text(encoding="utf-8")
    assert "$x^{" in text
    assert "_hidden" in text
    assert "a_b$" in text


def test_overview_shows_right_and_wrong_predictions(tmp_path: Path) -> None:
    image = np.full((20, 30, 3), 200, dtype=np.uint8)
    shown = [figures.Shown(image, "cat", "cat", 0.98), figures.Shown(image, "dog", "cat", 0.61)]
    figure = figures.overview(shown, LOSS, ACCURACY, np.eye(2, dtype=np.int64), ["cat", "dog"], title="pets")
    (file,) = figures.save(figure, tmp_path / "overview", ("png",))
    titles = [axes.get_title() for sub in figure.subfigs for axes in sub.axes]
    assert "cat 0.9800" in titles
    assert "cat 0.6100\n(is dog)" in titles
    with PIL.Image.open(file) as picture:
        assert picture.width > 2.5 * picture.height


def test_figures_of_a_run_are_written_for_each_split(run: Run) -> None:
    files = figures.write_run_figures(run)
    names = ("learning_curves", "learning_rate", "confusion_val", "reliability_val")
    assert {file.name for file in files} == {f"{name}.{kind}" for name in names for kind in ("png", "svg", "pdf")}
    assert all(file.parent == run.figures and file.stat().st_size > 1000 for file in files)


def test_figures_of_an_interrupted_run_are_its_curves(tmp_path: Path) -> None:
    files = figures.write_run_figures(make_run(tmp_path / "run", status="interrupted"))
    assert {file.stem for file in files} == {"learning_curves", "learning_rate"}


def test_pyplot_is_never_imported() -> None:
    code = "import sys; sys.modules['matplotlib.pyplot'] = None; from pellucid import figures, readings; figures.learning_curves([], [readings.Curve('v', [1], [0.5])])"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert isinstance(figures.learning_curves(LOSS, []), Figure)
