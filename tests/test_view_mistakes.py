"""What a model gets wrong, as a view: confusions, mistakes and the pictures behind them, as data and in a browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.metrics

import fabricate_captions
from browser import Watched, chromium, needs_chromium
from fabricate import make_run
from fabricate_segmentation import make_segmentation
from pellucid.atlas import write_atlas
from pellucid.errors import RunError
from pellucid.findings import ARRAYS, Findings
from pellucid.neighbour_findings import NEIGHBOUR_ATLAS, NEIGHBOUR_SIDE, KeptNeighbours, Near, NeighbourFindings, nearest_kept
from pellucid.records import write_arrays
from pellucid.report import write_report
from pellucid.run import Run
from pellucid.views import Room, mistakes, to_json

LARGE = Room(bytes=10_000_000)
CLASSES = ("<script>alert(1)</script>", "dog", "owl")


def view(run: Run, room: Room = LARGE) -> dict[str, Any]:
    found = mistakes.build(run, room)
    assert found is not None
    return found


def keep_neighbours(run: Run, m: int = 30) -> KeptNeighbours:
    """Give a fabricated classification run a bank of m training images and the neighbours of its kept mistakes."""
    random = np.random.default_rng(5)
    rows = sorted(int(path.stem) for path in (run.thumbnails / "val").glob("*.webp"))
    bank, own = (random.normal(size=(n, 8)).astype(np.float32) for n in (m, len(rows)))
    near = [Near(row, of) for row, of in zip(rows, nearest_kept(own, bank), strict=True)]
    findings = NeighbourFindings("0.1.0", "train", m, 360, "cosine of features", [f"train/{i:03d}.jpg" for i in range(m)], {"val": near})
    kept = KeptNeighbours(findings, bank, np.arange(m, dtype=np.int64), np.arange(m, dtype=np.int64) % 3, {"val": own})
    kept.save(run.inside)
    Findings("0.1.0", "a model", "last epoch").save(run.inside)
    write_arrays(run.inside / ARRAYS, {"none": np.zeros(1)})
    write_atlas(run.inside / NEIGHBOUR_ATLAS, [np.full((64, 64, 3), 8 * i, np.uint8) for i in range(m)], NEIGHBOUR_SIDE)
    return kept


def matrix(found: dict[str, Any]) -> np.ndarray:
    cells = np.array(found["cells"], np.int64).reshape(-1, 3)
    result = np.zeros((len(found["classes"]),) * 2, np.int64)
    result[cells[:, 0], cells[:, 1]] = cells[:, 2]
    return result


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    made = make_run(tmp_path_factory.mktemp("mistakes") / "run", classes=CLASSES, skill=1.0, thumbnails=6, file="{split}/{i:05d}.jpg")
    keep_neighbours(made)
    return made


# ── classification ───────────────────────────────────────────────────────────────────────────────────────────────


def test_the_confusion_is_that_of_sklearn(run: Run) -> None:
    predictions = run.predictions("val")
    expected = sklearn.metrics.confusion_matrix(predictions.labels, predictions.logits.argmax(axis=1), labels=range(3))
    assert np.array_equal(matrix(view(run)), expected)


def test_mistakes_come_surest_first_with_their_probabilities(run: Run) -> None:
    predictions, found = run.predictions("val"), view(run)
    logits = predictions.logits.astype(np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    wrong = [i for i in range(len(logits)) if logits[i].argmax() != predictions.labels[i]]
    wrong.sort(key=lambda i: -probabilities[i].max())
    assert [item["file"] for item in found["items"]] == [predictions.files[i] for i in wrong]
    for item, i in zip(found["items"], wrong, strict=True):
        order = np.argsort(-probabilities[i])
        assert item["top"] == [[CLASSES[c], f"{probabilities[i][c]:.4f}"] for c in order]
        assert item["cell"] == [predictions.labels[i], order[0]]


def test_what_was_not_kept_is_said(run: Run, tmp_path: Path) -> None:
    found = view(run)
    shown = [item for item in found["items"] if item["pictures"][0][1]]
    assert len(shown) == 6 < len(found["items"])
    assert found["notes"] == [f"Pictures of 6 of {len(found['items'])} mistakes are here: those about which the model was surest."]
    assert found["items"][6]["missing"] == "no picture was kept"
    bare = view(make_run(tmp_path / "bare", skill=1.0))
    assert bare["notes"][-1].startswith("No training pictures were kept in which to look for similar ones; `inside.neighbours`")


def test_neighbours_are_those_of_the_file_with_their_classes_and_pictures(run: Run) -> None:
    found, kept = view(run), mistakes.load_neighbours(run.inside)
    by_file = {item["file"]: item for item in found["items"]}
    files = run.predictions("val").files
    for one, features in zip(kept.findings.mistakes["val"], kept.mistakes["val"].astype(np.float64), strict=True):
        bank = kept.features.astype(np.float64)
        cosines = bank @ features / np.linalg.norm(bank, axis=1) / np.linalg.norm(features)
        near = by_file[files[one.row]]["near"]
        order = np.argsort(-cosines)[:6]
        assert [[name, text, file] for _, name, text, file in near] == [[CLASSES[i % 3], f"cosine {cosines[i]:.4f}", f"train/{i:03d}.jpg"] for i in order]
        assert all(found["tiles"][tile].startswith("data:image/webp") for tile, *_ in near)


@pytest.mark.parametrize(
    ("near", "said"),
    [
        ([1, 1, 1, 1, 0, 2], "4 of the 6 most similar training pictures carry the predicted class, b, 1 the label, a. To the model it looks like these"),
        ([0, 0, 0, 0, 1, 2], "1 of the 6 most similar training pictures carry the predicted class, b, 4 the label, a. Its features lie with its own class"),
        ([0, 0, 1, 1, 2, 2], "2 of the 6 most similar training pictures carry the predicted class, b, 2 the label, a. The features do not place it clearly"),
    ],
)
def test_the_sentence_on_neighbours_counts_predicted_and_labelled(near: list[int], said: str) -> None:
    assert mistakes.neighbours_say(near, 0, 1, "abc").startswith(said)


def test_a_small_room_leaves_pictures_out_and_says_so(run: Run) -> None:
    found = view(run, Room(bytes=9_000 + sum(len(str(item["facts"])) for item in view(run)["items"])))
    assert len(to_json(found)) < len(to_json(view(run)))
    assert any("pictures have no room here; `pellucid explore` shows all." in note for note in found["notes"])
    assert found["items"][0]["pictures"][0][1] is not None, "the first keeps its own"


def test_labels_of_neighbours_beyond_the_classes_are_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", classes=("a", "b"), skill=0.5, thumbnails=2)
    keep_neighbours(run)
    with pytest.raises(RunError, match=r"neighbours\.npz: labels up to 2 for 2 classes; the run was changed"):
        view(run)


def test_a_run_without_mistakes_says_so(tmp_path: Path) -> None:
    found = view(make_run(tmp_path / "run", skill=60.0))
    assert found["lead"] == ["None: all 120 samples of val were predicted as labelled."]
    assert found["items"] == []


def test_an_unfinished_run_has_no_view(tmp_path: Path) -> None:
    assert mistakes.build(make_run(tmp_path / "run", status="interrupted"), LARGE) is None


# ── the other tasks ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_confusion_of_pixels_names_the_images_with_most_of_it(tmp_path: Path) -> None:
    run = make_segmentation(tmp_path / "run", thumbnails=3)
    found, own = view(run), run.mask_predictions("val")
    assert np.array_equal(matrix(found), own.confusion.sum(axis=0)[:-1])
    for key, images in found["filed"].items():
        label, prediction = map(int, key.split(","))
        counts = {file: int(own.confusion[i, label, prediction]) for i, file in enumerate(own.files)}
        expected = sorted((file for file in counts if counts[file]), key=lambda file: -counts[file])[:6]
        assert [file for _, file, _ in images] == expected
        assert all(text.startswith(f"{counts[file]:,} pixels") for _, file, text in images)
        assert all(found["items"][item]["file"] == file for item, file, _ in images if item >= 0)
    assert [all(uri for _, uri in item["pictures"]) for item in found["items"]] == [True] * 3 + [False] * (len(found["items"]) - 3)


def test_captions_stand_beside_their_own_with_their_score(tmp_path: Path) -> None:
    found = view(fabricate_captions.make_run(tmp_path / "run"))
    assert [name for name, _ in found["groups"]] == ["Worst", "Best"]
    scores = [float(dict(map(tuple, item["facts"]))["CIDEr-D of the picture"]) for item in found["items"]]
    worst, best = ([scores[i] for i in items] for _, items in found["groups"])
    assert worst == sorted(worst)
    assert best == sorted(best, reverse=True)
    assert max(worst) <= min(best)


# ── in a browser ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@needs_chromium
def test_a_cell_shows_its_pictures_and_a_picture_its_neighbours(run: Run, browser: Any, tmp_path: Path) -> None:
    watched = Watched(browser)
    page = watched.open(write_report(run, out=tmp_path / "report.html"), "mistakes")
    found = view(run)
    label, prediction = found["items"][0]["cell"]
    of_cell = [item for item in found["items"] if item["cell"] == [label, prediction]]
    cell = page.locator(f'.matrix button[data-cell="{label},{prediction}"]')
    cell.focus()
    page.keyboard.press("Enter")
    assert cell.get_attribute("aria-pressed") == "true"
    tiles = page.locator('[data-part="mistakes"] .moving > div > .gallery .tile')
    assert tiles.count() == len(of_cell)
    tiles.first.focus()
    page.keyboard.press("Enter")
    opened = page.locator(".opened")
    assert opened.get_attribute("aria-label") == found["items"][0]["heading"], "a hostile class is text"
    assert opened.locator("img").count() == 1 + 6
    watched.keep("mistakes-classification")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Close", "keys of the browser go on working"
    page.keyboard.press("Escape")
    assert opened.is_hidden()
    assert page.evaluate("document.activeElement.className") == "tile", "focus goes back to where it was"
    cell.focus()
    tiles.first.dispatch_event("click")
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.className") == "tile", "also where a press gives no focus, as on macOS"
    assert watched.errors == []
    assert len(watched.requests) == 1


@needs_chromium
def test_many_classes_are_a_canvas_that_keys_move(browser: Any, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", classes=[f"class-{i}" for i in range(24)], n=300, skill=2.0, thumbnails=8)
    watched = Watched(browser, color_scheme="dark", viewport={"width": 390, "height": 844})
    page = watched.open(write_report(run, out=tmp_path / "report.html"), "mistakes")
    canvas = page.locator('canvas[role="application"].pixels')
    canvas.focus()
    for key in ("ArrowDown", "ArrowRight", "ArrowRight"):
        page.keyboard.press(key)
    assert "class-1 taken for class-2" in page.locator('[data-view="mistakes"] figure p').first.inner_text()
    assert page.get_by_text("Rows are labels, columns predictions; ink is").is_visible(), "what the axes are stays"
    page.locator('[data-view="mistakes"] ol button').first.click()
    count = matrix(view(run))
    np.fill_diagonal(count, 0)
    assert f"{count.max()} samples" in page.locator('[data-part="mistakes"] [role="status"]').inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    blank = page.locator('[data-part="mistakes"] .moving .blank')
    page.get_by_role("button", name="Show all").click()
    assert blank.count() > 20
    assert blank.first.bounding_box()["height"] < 50, "a line, not a square"
    watched.keep("mistakes-many-classes")
    assert watched.errors == []


@needs_chromium
def test_on_paper_stands_the_still_picture(run: Run, browser: Any, tmp_path: Path) -> None:
    watched = Watched(browser)
    page = watched.open(write_report(run, out=tmp_path / "report.html"), "mistakes")
    page.emulate_media(media="print")
    assert page.locator("#confusion .still .matrix").is_visible()
    assert page.locator("#mistakes .still .gallery").is_visible()
    assert not page.locator("#mistakes .moving").is_visible()


def test_a_damaged_picture_is_said_in_its_place(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", skill=1.0, thumbnails=2)
    next(iter(sorted((run.thumbnails / "val").iterdir()))).write_bytes(b"RIFF")
    assert sorted(item["missing"] for item in view(run)["items"])[-1] == "picture cannot be read"
