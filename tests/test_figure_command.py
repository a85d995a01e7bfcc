"""`pellucid figure`: every figure of every task at a column's width, nothing over its edge, no type below 6 points; what is missing is said."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from matplotlib.text import Text

import fabricate_captions
import test_report_pretraining
from fabricate import make_run
from fabricate_inside import EPOCHS, make_findings
from fabricate_segmentation import keep_masks, make_segmentation
from fabricate_study import make_study
from pellucid import figures, paper_figures
from pellucid.attention_findings import AttentionFindings, KeptLayer
from pellucid.errors import RunError, UsageError
from pellucid.figures.style import in_line, over_the_edge, panel_layout
from pellucid.paper_asked import COLUMN, PAGE, Asked, millimetres
from pellucid.paper_figures import FIGURES, draw_figure, figures_of
from pellucid.readings import learning_rate
from pellucid.report import page as reports
from pellucid.report.pretraining import read_pretraining
from pellucid.run import Run
from pellucid.views import FULLER


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    folder = tmp_path_factory.mktemp("runs")
    classified = make_run(folder / "classified", thumbnails=4)
    make_findings(classified.path / "inside")
    segmented = make_segmentation(folder / "segmented")
    keep_masks(segmented.path / "inside")
    captioned = fabricate_captions.make_run(folder / "captioned")
    return {"classification": classified, "segmentation": segmented, "captioning": captioned}


@pytest.mark.parametrize(("task", "width"), [("classification", COLUMN), ("classification", PAGE), ("segmentation", COLUMN), ("captioning", COLUMN)])
def test_every_figure_has_its_width_and_nothing_over_the_edge_and_no_type_below_6_points(runs: dict[str, Run], task: str, width: float, tmp_path: Path) -> None:
    run = runs[task]
    names = [one.name for one in figures_of(run.path)]
    assert {"classification": {"overview", "mistakes", "attention", "tsne"}, "segmentation": {"masks", "iou"}, "captioning": {"words", "cider"}}[task] <= {
        *names
    }
    for name in names:
        figure = FIGURES[task][name].draw(run, Asked(width))
        assert figure.get_size_inches()[0] * 25.4 == pytest.approx(width)
        assert over_the_edge(figure) == {}, name
        sizes = [text.get_fontsize() for text in figure.findobj(Text) if text.get_text()]
        assert 6.0 <= min(map(float, sizes)) <= max(map(float, sizes)) <= 8.0, name


def test_png_has_the_pixels_of_its_width_and_pdf_and_svg_keep_text_as_text(runs: dict[str, Run], tmp_path: Path) -> None:
    drawn = draw_figure(runs["classification"].path, "curves", Asked(COLUMN), dpi=200, out=tmp_path)
    assert [file.name for file in drawn.files] == ["curves.png", "curves.svg", "curves.pdf"]
    with PIL.Image.open(drawn.files[0]) as image:
        assert image.width == pytest.approx(COLUMN / 25.4 * 200, abs=1)
    assert ">accuracy</text>" in drawn.files[1].read_text()
    assert f'width="{COLUMN / 25.4 * 72:.3f}'[:12] in drawn.files[1].read_text()
    pdf = drawn.files[2].read_bytes()
    assert b"/FontFile2" in pdf
    assert b"/Type3" not in pdf


def test_the_same_run_gives_the_same_bytes(runs: dict[str, Run], tmp_path: Path) -> None:
    first, second = (draw_figure(runs["classification"].path, "confusion", Asked(), out=tmp_path / name).files for name in ("a", "b"))
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in second]


def test_without_a_name_the_figures_are_listed(pellucid: Any, runs: dict[str, Run]) -> None:
    code, out, _ = pellucid("figure", runs["segmentation"].path)
    assert code == 0
    assert re.search(r"^masks +a picture, its ground truth, the masks over epochs and the errors$", out, re.MULTILINE)
    found = json.loads(pellucid("figure", runs["classification"].path, "--json")[1])["figures"]
    assert found["tsne"] == "features over epochs by t-SNE"
    assert "masks" not in found


def test_files_are_printed_and_stand_in_the_run_or_where_asked(pellucid: Any, runs: dict[str, Run], tmp_path: Path) -> None:
    run = runs["captioning"]
    code, out, _ = pellucid("figure", run.path, "loss", "--out", tmp_path / "mine.svg", "--width", "page")
    assert (code, out) == (0, f"{tmp_path / 'mine.svg'}\n")
    found = json.loads(pellucid("figure", run.path, "loss", "--format", "pdf", "--json")[1])
    assert found == {"files": [str(run.figures / "paper" / "loss.pdf")], "width_mm": COLUMN}
    assert Path(found["files"][0]).is_file()


def test_unknown_names_and_choices_are_said_with_what_there_is(pellucid: Any, runs: dict[str, Run]) -> None:
    folder = runs["classification"].path
    for arguments, said in (
        (["curvs"], "no figure is called 'curvs'. Did you mean 'curves'? It has: overview, curves,"),
        (["curves", "--format", "pgn"], "--format: expected png, svg, pdf, got 'pgn'. Did you mean 'png'?"),
        (["curves", "--width", "9cm"], "--width: expected column (89 mm), page (183 mm) or 80mm to 420mm, got '9cm'"),
        (["curves", "--picture", "1"], "--picture: the figure curves has no picture to choose; these have: attention, heads, epochs"),
        (["attention", "--picture", "7"], "--picture: the run looked at 3 pictures, counted from 1; got 7"),
        (["tsne", "--epoch", "999"], f"--epoch: the run kept it after {', '.join(map(str, EPOCHS))} (inside.epochs of the recipe), got 999"),
        (["confusion", "--split", "vall"], "--split: the run has predictions of val, got 'vall'. Did you mean 'val'?"),
        (["curves", "--out", "x.jpg"], "--out: expected a folder, or a file that ends in .png, .svg, .pdf; got x.jpg"),
    ):
        code, out, error = pellucid("figure", folder, *arguments)
        assert (code, out) == (2, ""), arguments
        assert said in error


def test_what_a_run_did_not_keep_is_said_with_the_line_that_keeps_it(tmp_path: Path) -> None:
    run = make_run(tmp_path / "bare")
    with pytest.raises(RunError, match=r"did not keep what the figure tsne is drawn from: inside.features above 0 and inside.projections of the recipe"):
        draw_figure(run.path, "tsne", Asked())
    assert "tsne" not in [one.name for one in figures_of(run.path)]


def test_picture_and_epoch_choose_what_is_drawn(runs: dict[str, Run]) -> None:
    run = runs["classification"]
    first, second = (FIGURES["classification"]["attention"].draw(run, Asked(picture=i)) for i in (1, 2))
    assert first.get_suptitle() != second.get_suptitle()
    alone = FIGURES["classification"]["tsne"].draw(run, Asked(epoch=EPOCHS[0]))
    assert [axes.get_title(loc="left") for axes in alone.axes] == [f"epoch {EPOCHS[0]}"]


def test_a_damaged_picture_is_an_error_that_names_it(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    make_findings(run.path / "inside")
    (run.path / "inside" / "images" / "0.webp").write_bytes(b"no picture")
    with pytest.raises(RunError, match=r"images/0.webp: cannot be read as a picture"):
        draw_figure(run.path, "attention", Asked())


def test_text_over_the_edge_is_found_and_said(runs: dict[str, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def long(run: Run, asked: Asked) -> Any:
        figure = figures.learning_rate_curve(learning_rate(run.metrics()), width=asked.inches)
        figure.text(0.9, 0.5, "much too long for what is left of the width")
        return figure

    plates = FIGURES["classification"] | {"curves": paper_figures.Plate("x", lambda run: True, long, "")}
    monkeypatch.setitem(FIGURES, "classification", plates)
    notes = draw_figure(runs["classification"].path, "curves", Asked(), formats=["svg"], out=tmp_path).notes
    assert len(notes) == 1
    assert re.fullmatch(r"curves reaches \d+\.\d mm over the right edge at a width of 89 mm; its names are too long for a page", notes[0])


def test_mass_under_a_map_is_its_share_on_the_target_beside_that_of_a_uniform_map() -> None:
    random = np.random.default_rng(0)
    target, valid, maps = np.zeros((1, 3, 4), bool), np.ones((1, 3, 4), bool), random.random((2, 3, 4))
    target[0, 1, 1:3], valid[0, 2] = True, False
    slow = [
        sum(float(one[y, x]) for y in range(3) for x in range(4) if target[0, y, x]) / sum(float(one[y, x]) for y in range(2) for x in range(4)) for one in maps
    ]
    said = paper_figures._mass({"target/3x4": target, "valid/3x4": valid}, 0, maps)
    assert said == [f"mass {value:.4f} (uniform 0.2500)" for value in slow]
    assert paper_figures._mass({}, 0, maps) == ["no mask: not measured"] * 2


def test_panels_have_the_inches_they_need_and_lines_of_one_length() -> None:
    assert [in_line(count, 3.5, least=1.1) for count in (1, 2, 3, 4, 5, 6)] == [1, 2, 3, 2, 3, 3]
    assert in_line(5, 0.5, least=1.0) == 1
    assert panel_layout(2, (4.2, 3.0), None, least=2.4) == (1, 2, (8.4, 3.0))
    rows, columns, size = panel_layout(2, (4.2, 3.0), 3.5, least=2.4)
    assert (rows, columns, round(size[1], 6)) == (2, 1, 5.0)
    with pytest.raises(UsageError, match="got '12 inches'"):
        millimetres("12 inches")
    assert millimetres("120mm") == 120


def test_figures_are_drawn_without_torch(runs: dict[str, Run], tmp_path: Path) -> None:
    arguments = ["figure", str(runs["classification"].path), "attention", "--out", str(tmp_path / "a.png"), "--dpi", "60"]
    code = f"import sys; sys.modules['torch'] = None; from pellucid.cli import main; sys.exit(main({arguments!r}))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (0, "")
    assert (tmp_path / "a.png").is_file()


def test_runs_in_a_folder_and_seeds_have_their_curves_over_each_other(pellucid: Any, tmp_path: Path) -> None:
    for seed in (1, 2):
        make_run(tmp_path / "two" / f"seed-{seed}", seed=seed)
    make_run(tmp_path / "two" / "other", overrides=["train.phases.0.epochs=4"])
    assert list(json.loads(pellucid("figure", tmp_path / "two", "--json")[1])["figures"]) == ["curves", "loss"]
    runs = paper_figures._opened(tmp_path / "two")
    (axes,) = paper_figures.OF_RUNS["curves"].draw(runs, Asked()).axes
    assert axes.get_ylabel() == "validation accuracy"
    assert sorted(len(line.get_xdata()) for line in axes.lines) == [4, 6, 6]
    assert len(axes.get_legend().get_texts()) == 2  # the seeds of one recipe share a name
    (tmp_path / "two" / "seeds.json").write_text(json.dumps({"runs": ["seed-1", "seed-2"]}))
    code, out, _ = pellucid("figure", tmp_path / "two", "loss", "--format", "png")
    assert (code, out) == (0, f"{tmp_path / 'two' / 'figures' / 'paper' / 'loss.png'}\n")
    assert len(paper_figures._opened(tmp_path / "two")) == 2


def test_every_figure_of_a_study_is_drawn_within_its_width(tmp_path: Path) -> None:
    study = make_study(tmp_path / "study", skill={"A": 1.6, "B": 3.2}, final=None, shared=False)
    assert [one.name for one in figures_of(study.path)] == list(paper_figures.OF_STUDIES)
    for name, plate in paper_figures.OF_STUDIES.items():
        figure = plate.draw(study, Asked(COLUMN))
        assert figure.get_size_inches()[0] * 25.4 == pytest.approx(COLUMN)
        assert over_the_edge(figure) == {}, name
    assert draw_figure(study.path, "curves", Asked(), formats=["svg"]).files[0].is_file()


def test_neighbours_and_views_of_a_pretraining_stand_beside_each_other(tmp_path: Path) -> None:
    run = test_report_pretraining.make_run(tmp_path / "run")
    assert {"neighbours", "views"} <= {one.name for one in figures_of(run.path)}
    near, views = (FIGURES["pretraining"][name].draw(run, Asked(PAGE)) for name in ("neighbours", "views"))
    found = read_pretraining(run, run.record, run.recipe, run.data)
    assert found.neighboured is not None
    said = [axes.get_xlabel().replace("\n", " ") for axes in near.axes]
    assert [text for text in said if "cosine" in text] == [f"{near.label} cosine {near.cosine}" for one in found.neighboured.images for near in one.near]
    assert [axes.get_xlabel() for axes in views.axes] == ["image", "first view", "second view"] * len(found.viewed)
    assert over_the_edge(near) == over_the_edge(views) == {}


def test_hardest_images_and_best_and_worst_captions_say_their_numbers(runs: dict[str, Run]) -> None:
    hardest = FIGURES["segmentation"]["hardest"].draw(runs["segmentation"], Asked())
    accuracies = [float(found[1]) for axes in hardest.axes if (found := re.search(r"accuracy\s+([\d.]+)", axes.get_xlabel()))]
    assert accuracies == sorted(accuracies)
    assert len(hardest.axes) == 3 * len(accuracies) > 0
    best, worst = (
        [
            float(found[1])
            for axes in FIGURES["captioning"][name].draw(runs["captioning"], Asked()).axes
            if (found := re.search(r"CIDEr-D\s+([\d.]+)", axes.get_xlabel()))
        ]
        for name in ("best", "worst")
    )
    assert best
    assert worst
    assert min(best) >= max(worst)


def test_a_report_says_what_it_leaves_out_and_what_would_show_it(pellucid: Any, runs: dict[str, Run], tmp_path: Path) -> None:
    folder = runs["classification"].path
    code, _, error = pellucid("report", folder, "--max-points", "5", "--out", tmp_path / "page.html")
    assert code == 0
    assert "5 of " in error
    assert error.splitlines()[-1] == f"note: a report stays small: `pellucid explore {folder}` shows what it leaves out."


def test_epochs_on_paper_are_whole(runs: dict[str, Run]) -> None:
    for axes in FIGURES["classification"]["curves"].draw(runs["classification"], Asked()).axes:
        assert [tick for tick in axes.get_xticks() if tick % 1] == []


def test_layer_chooses_among_the_layers_whose_attention_was_kept(pellucid: Any, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    make_findings(run.path / "inside", changed={"heads/blocks.11.attn": np.full((3, 2, 6, 6), 1 / 36)})
    assert "--layer: " in pellucid("figure", run.path, "heads", "--layer", "1")[2]
    weights = np.random.default_rng(0).random((2, 4)).astype(np.float32) / 4
    arrays: dict[str, Any] = {}
    for at in (0, 1):
        arrays |= {f"rows/1/{at}": np.full((2, 4, 4), 255, np.uint8), f"scale/1/{at}": np.full((2, 4), 0.25, np.float32)}
        arrays |= {f"rest/1/{at}": np.zeros((2, 4), np.float32), f"class/1/{at}": weights * (1 + at)}
    AttentionFindings("0.1.0", "kept", [KeptLayer(f"blocks.{at}", 2, False, (2, 2)) for at in (0, 1)], [1], True).save(run.inside, arrays)
    figure = FIGURES["classification"]["heads"].draw(run, Asked(picture=2, layer=2))
    assert figure.get_suptitle().replace("\n", " ") == "Heads of layer 2 of 2, blocks.1, class token"
    for arguments, said in (
        (["--layer", "3"], "--layer: the run kept 2 layers, counted from 1; got 3"),
        (["--layer", "1"], "--picture: the layers were kept of 2, got 1"),
    ):
        code, _, error = pellucid("figure", run.path, "heads", *arguments)
        assert (code, said in error) == (2, True), error


def test_width_takes_plain_digits_of_a_sensible_size() -> None:
    assert millimetres("80mm") == 80
    for width in ("٩٠mm", "79mm", "421mm", "1e2mm", "9" * 400 + "mm", "-90mm", "nanmm"):
        with pytest.raises(UsageError, match="--width: expected column"):
            millimetres(width)


def test_what_the_views_leave_out_is_said_on_stderr(pellucid: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run", skill=1.0, thumbnails=6)
    assert pellucid("report", run.path)[2] == ""
    monkeypatch.setitem(reports.ROOMS, "mistakes", 4000)
    code, _, error = pellucid("report", run.path)
    assert code == 0
    assert FULLER in error
    assert error.endswith(f"a report stays small: `pellucid explore {run.path}` shows what it leaves out.\n")
