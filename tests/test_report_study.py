from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fabricate_study import SKILL, make_study
from pellucid.figures.study import class_dots, study_curves
from pellucid.readings import Curve
from pellucid.records import write_json
from pellucid.report import charts
from pellucid.study_readings import Band, Dots, band, charted_value, sorted_dots
from pellucid.study_record import StudyFolder
from pellucid.study_table import StudyTable, study_table, to_html, write_figures, write_table


class Page(HTMLParser):
    """The texts, links and tags of a page; fails on a tag that is closed twice or left open."""

    VOID = frozenset({"meta", "link", "br", "img", "input"})

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.words: list[str] = []
        self.feed(source)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    folder = make_study(
        tmp_path_factory.mktemp("study"), skill={"A": 1.6, "C": 2.1, "<i>": 1.0}, status={("<i>", 2): "failed", ("<i>", 3): ""}, epochs={"C": 3}
    )
    for seed, result in ((1, "verified"), (2, "mismatch")):
        run = folder.runs("C")[seed]
        run.report_file.write_text("a report")
        write_json(run.verify_file, {"result": result})
    folder.runs("C")[3].verify_file.write_text("{")
    return folder


@pytest.fixture(scope="module")
def table(whole: StudyFolder) -> StudyTable:
    return write_table(whole)


@pytest.fixture(scope="module")
def page(whole: StudyFolder, table: StudyTable) -> Page:
    return Page(whole.page.read_text(encoding="utf-8"))


# ── the page ──


def test_the_page_needs_no_network_and_no_script(whole: StudyFolder, page: Page) -> None:
    assert not any(re.match(r"(?:[a-z]+:)?//", link) for link in page.links)
    assert "script" not in page.tags
    assert "@import" not in whole.page.read_text(encoding="utf-8")


def test_the_page_links_to_the_reports_that_are_there_and_to_nothing_else(whole: StudyFolder, page: Page) -> None:
    files = [link for link in page.links if not link.startswith(("#", "data:"))]
    assert files == ["runs/C/seed-1/report.html", "runs/C/seed-2/report.html"]
    assert all((whole.path / link).is_file() for link in files)
    anchors = {link[1:] for link in page.links if link.startswith("#")}
    source = whole.page.read_text(encoding="utf-8")
    assert all(f'id="{anchor}"' in source for anchor in anchors)


def test_every_run_stands_there_with_its_status_and_what_verify_found(page: Page) -> None:
    for words in ("C 1 done 0.6", "verified runs/C/seed-1", "mismatch runs/C/seed-2", "verify.json is not readable runs/C/seed-3", "not yet runs/A/seed-1"):
        assert words in page.text
    assert "failed epoch 3, step 12 the loss is NaN after step 12" in page.text
    assert "not begun" in page.text


def test_the_page_shows_table_settings_shared_parts_and_names_as_text(whole: StudyFolder, page: Page, table: StudyTable) -> None:
    assert table.decided in page.text
    for note in table.notes:
        assert note in page.text
    assert "train.phases.0.epochs: 3" in page.text
    assert "own: done" in page.text
    assert "val/knn_accuracy" in page.text
    assert "<i>" in page.text
    assert "<i>" not in whole.page.read_text(encoding="utf-8")


def test_a_page_of_65_classes_and_1000_epochs_stays_below_a_megabyte(tmp_path: Path) -> None:
    classes = [f"one of many classes, number {i}" for i in range(65)]
    folder = make_study(tmp_path, skill=SKILL, seeds=[1], classes=classes, n=650)
    found = study_table(folder)
    epochs, random = list(range(1, 1001)), np.random.default_rng(0)
    curves = [Curve(name, epochs, random.random(1000).tolist(), i) for i, name in enumerate(SKILL)]
    bands = tuple(Band(curve.name, curve, curve, curve, 3) for curve in curves)
    source = to_html(StudyTable(**{**vars(found), "bands": bands}))
    assert len(source.encode()) < 1_000_000
    assert all(name in source for name in classes)


# ── curves ──


def lines(values: dict[int, float | None], key: str = "accuracy") -> list[dict[str, Any]]:
    return [{"kind": "train", "epoch": 1, "step": 1, key: 9.0}, *({"kind": "val", "epoch": e, "step": e, key: v} for e, v in values.items())]


def test_a_band_is_mean_lowest_and_highest_of_the_epochs_that_every_seed_has() -> None:
    runs = [lines({1: 0.2, 2: 0.4, 3: 0.9}), lines({1: 0.4, 2: 0.8}), lines({1: 0.3, 2: float("nan"), 3: 0.5})]
    two, three = band("A", runs[:2], "accuracy", style=2), band("A", runs, "accuracy")
    assert two is not None
    assert three is not None
    assert two.mean.x == [1, 2]
    assert two.mean.y == pytest.approx([0.3, 0.6])
    assert two.low.points == [(1, 0.2), (2, 0.4)]
    assert two.high.points == [(1, 0.4), (2, 0.8)]
    assert (two.seeds, two.mean.style) == (2, 2)
    assert three.mean.x == [1]
    assert band("A", [], "accuracy") is None
    assert band("A", [lines({}), runs[0]], "accuracy") is None


def test_the_chart_shows_the_measured_number_else_the_first_that_training_has() -> None:
    run = [*lines({1: 0.2}), *lines({1: 2.0}, "loss")]
    assert charted_value([run], "loss") == "loss"
    assert charted_value([run], "macro_f1") == "accuracy"
    assert charted_value([lines({1: 0.3}, "knn_accuracy")], "linear_accuracy") == "knn_accuracy"
    assert charted_value([lines({1: None})], "accuracy") is None


def test_settings_of_different_length_end_where_they_end(table: StudyTable) -> None:
    assert {found.name: len(found.mean.x) for found in table.bands} == {"A": 6, "C": 3, "<i>": 6}
    drawn = str(charts.band_chart(table.bands, title="Validation accuracy", x_label="epoch", y_label="accuracy", unit="fraction"))
    ends = [float(re.findall(r"[ML]([\d.]+),", path)[-1]) for path in re.findall(r'<path d="(M[^"]+)" class="line', drawn)]
    assert len(ends) == 3
    assert ends[0] == ends[2] == charts.WIDTH - charts.RIGHT
    assert ends[1] == pytest.approx(charts.LEFT + 0.4 * (charts.WIDTH - charts.LEFT - charts.RIGHT), abs=0.1)
    assert drawn.count('class="band') == 2  # one seed has no area


def test_areas_hold_their_line() -> None:
    found = band("A", [lines({1: 0.2, 2: 0.4}), lines({1: 0.4, 2: 0.8})], "accuracy")
    assert found is not None
    drawn = str(charts.band_chart([found], title="t", x_label="epoch", y_label="accuracy", unit="fraction"))
    area = [float(y) for y in re.findall(r",([\d.]+)", re.findall(r'class="band[^>]+ d="([^"]+)"', drawn)[0])]
    line = [float(y) for y in re.findall(r",([\d.]+)", re.findall(r'<path d="(M[^"]+)" class="line', drawn)[0])]
    high, low = area[:2], area[2:][::-1]
    assert all(top < y < bottom for top, y, bottom in zip(high, line, low, strict=True))
    figure = study_curves([found], y_label="accuracy")
    (drawn_line,) = figure.axes[0].get_lines()
    assert np.asarray(drawn_line.get_ydata()).tolist() == pytest.approx([0.3, 0.6])
    assert "2 seeds" in str(drawn_line.get_label())
    edges = figure.axes[0].collections[0].get_paths()[0].vertices
    assert np.asarray(edges)[:, 1].min() == 0.2
    assert np.asarray(edges)[:, 1].max() == 0.8
    with pytest.raises(ValueError, match="one or more settings with a curve"):
        study_curves([], y_label="accuracy")


# ── classes ──


DOTS = Dots("recall", ("cat", "dog", "owl"), {"A": (0.5, 0.9, None), "B": (0.75, 0.25, 0.4), "C": (None, None, None)}, {"A": 0, "B": 1, "C": 2})


def test_classes_stand_in_the_order_of_the_baseline() -> None:
    assert sorted_dots(DOTS, "A").classes == ("dog", "cat", "owl")
    assert sorted_dots(DOTS, "B").classes == ("cat", "owl", "dog")
    assert sorted_dots(DOTS, "B").values["A"] == (0.5, None, 0.9)
    assert sorted_dots(DOTS, "C").classes == ("cat", "dog", "owl")
    assert sorted_dots(DOTS, "not there").classes == ("cat", "dog", "owl")
    assert [DOTS.span(i) for i in range(3)] == [(0.5, 0.75), (0.25, 0.9), (0.4, 0.4)]


def test_each_number_of_a_class_is_a_mark_at_its_place() -> None:
    drawn = str(charts.dot_chart(DOTS, title="recall"))
    left, room = 150, charts.WIDTH - 150 - charts.RIGHT
    marks = re.findall(r'class="dot (s\d)" transform="translate\(([\d.]+) ([\d.]+)\)" d="[^"]+"><title>([^<]+)', drawn)
    assert [(style, title) for style, _, _, title in marks] == [
        ("s0", "cat, A: 0.5000"), ("s1", "cat, B: 0.7500"), ("s0", "dog, A: 0.9000"), ("s1", "dog, B: 0.2500"), ("s1", "owl, B: 0.4000"),
    ]  # fmt: skip
    assert [float(x) for _, x, _, _ in marks] == pytest.approx([left + v * room for v in (0.5, 0.75, 0.9, 0.25, 0.4)], abs=0.1)
    assert len({y for _, _, y, _ in marks}) == 3
    assert str(charts.dot_legend(DOTS)).count("<li>") == 3


def test_the_figure_of_classes_has_the_first_class_on_top_and_a_gap_where_there_is_no_number() -> None:
    figure = class_dots(DOTS)
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog", "owl"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]
    places = [np.ma.filled(np.ma.asarray(marks.get_offsets()).astype(float), np.nan) for marks in axes.collections]
    assert places[0][:2].tolist() == [[0.5, 0.0], [0.9, 1.0]]
    assert np.isnan(places[0][2, 0])
    with pytest.raises(ValueError, match="one or more classes"):
        class_dots(Dots("iou", (), {}, {}))


def test_figures_are_written_beside_the_table_as_png_svg_and_pdf(whole: StudyFolder) -> None:
    files = write_figures(whole)
    assert [file.relative_to(whole.path).as_posix() for file in files] == [
        f"figures/{name}.{kind}" for name in ("learning_curves", "classes") for kind in ("png", "svg", "pdf")
    ]
    assert all(file.stat().st_size > 1000 for file in files)


def test_a_study_without_a_finished_run_has_no_figures(tmp_path: Path) -> None:
    folder = make_study(tmp_path, skill={"A": 1.0}, seeds=[1], status={("A", 1): "running"}, shared=False, final=None)
    assert write_figures(folder) == []
    assert "Learning curves" not in Page(to_html(study_table(folder))).text
