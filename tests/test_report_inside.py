from __future__ import annotations

import base64
import dataclasses
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from fabricate import make_run
from fabricate_inside import EPOCHS, all_scores, make_findings, measured, projected
from pellucid.errors import RunError
from pellucid.findings import ARRAYS, FINDINGS, IMAGES, Findings, Panel, PositionsFinding, Score, hardest_baseline, verdict
from pellucid.report import inside, planes, render, write_report
from pellucid.run import Run
from test_report import HOSTILE, Page


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return make_run(tmp_path / "run")


def section(run: Run) -> str:
    """The page's section of HTML."""
    found = re.search(r'<section id="inside".*?</section>', render(run), flags=re.DOTALL)
    assert found is not None
    return found[0]


def test_a_run_nobody_looked_into_has_no_section(run: Run) -> None:
    assert 'id="inside"' not in render(run)
    assert "#inside" not in render(run)


def test_the_page_stays_one_well_formed_offline_file(run: Run) -> None:
    make_findings(run.path / "inside")
    page = Page(write_report(run).read_text(encoding="utf-8"))
    assert not page.open
    assert {attributes["type"] for attributes in page.named("script")} == {"application/json", "module"}  # the views' data, and what draws them
    addresses = [str(value) for _, attributes in page.tags for key, value in attributes.items() if key in ("src", "href")]
    assert all(address.startswith(("#", "data:")) for address in addresses)
    assert "#inside" in addresses
    assert all(attributes.get("alt") for attributes in page.named("img"))
    assert all(attributes.get("aria-label") or attributes.get("aria-hidden") for attributes in page.named("svg"))
    assert all(attributes.get("scope") for attributes in page.named("th"))
    assert len(page.named("table")) == len(page.named("caption"))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_every_score_stands_beside_its_baselines_with_a_verdict(run: Run) -> None:
    make_findings(run.path / "inside")
    text = Page(section(run)).text
    for score in all_scores():
        assert str(score.value) in text
        assert verdict(score)[0] in text
        for baseline in score.baselines.values():
            assert str(baseline) in text
    assert "0.6600 – 0.7600" in text
    assert "lower is better" in text
    assert "Random model: the same network with seed 2." in text


@pytest.mark.parametrize(("higher", "name"), [(True, "centre"), (False, "uniform")])
def test_the_hardest_baseline_follows_the_direction_of_the_score(higher: bool, name: str) -> None:
    baselines = {"uniform": measured("u", 0.3), "centre": measured("c", 0.5), "shuffled": measured("s", 0.4)}
    assert hardest_baseline(Score("attention", "m", measured("m", 0.6), baselines, higher)) == name


def pictures(html: str) -> list[np.ndarray]:
    found = re.findall(r'src="data:image/webp;base64,([^"]+)"', html)
    return [np.asarray(PIL.Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB")).astype(int) for text in found]


def test_images_show_their_maps_in_place_with_scores_and_flags(run: Run) -> None:
    make_findings(run.path / "inside", sizes=((480, 640),))
    html = section(run)
    shown = pictures(html)
    assert len(shown) == 3 * 3 + 1
    for i in range(3):
        photo, attention, grad_cam = shown[3 * i : 3 * i + 3]
        assert photo.shape == attention.shape == grad_cam.shape == (240, 320, 3)
        assert np.abs(attention[:, :38] - 0.25 * photo[:, :38]).max() < 12  # outside its view, the middle 240 x 240
        warm = attention[..., 0] - attention[..., 2]
        y, x = np.argwhere(warm > 0.8 * warm.max()).mean(axis=0)
        assert abs(y - 240 * (0.4 + 0.02 * i)) < 25
        assert abs(x - (40 + 240 * (0.35 + 0.03 * i))) < 25
    text = Page(html).text
    assert "attention: 41 % of it lies on prefix tokens." in text
    assert "val/00000_cat.jpg" in text
    assert "label cat, prediction dog 0.9100" in text
    assert "0.4100 (centre 0.5200)" in text
    assert "(blocks.11.attn, 4 x 6)" in text


def test_a_score_without_a_baseline_is_under_no_picture(run: Run) -> None:
    findings = make_findings(run.path / "inside")
    findings.scores = [Score("attention", "pointing_game", measured("pointing_game[attention]", 0.7), {})]
    findings.save(run.path / "inside")
    assert "relevance mass" not in Page(section(run)).text


def test_pictures_that_are_gone_or_damaged_are_said(run: Run) -> None:
    make_findings(run.path / "inside")
    images = run.path / "inside" / IMAGES
    (images / "0.webp").unlink()
    (images / "1.webp").write_bytes(b"RIFF")
    text = Page(section(run)).text
    assert "no picture was kept" in text
    assert "picture cannot be read" in text


def test_projections_have_the_same_axes_and_their_numbers(run: Run) -> None:
    make_findings(run.path / "inside", num_points=2500, classes=tuple(f"c{i}" for i in range(23)))
    html = section(run)
    text = Page(html).text
    assert "600 of 2,500 points are drawn, evenly spaced. The numbers are of all." in text
    assert "3 other classes" in text
    panels = re.findall(r'<svg class="chart plane".*?</svg>', html, flags=re.DOTALL)
    assert len(panels) == 2 * 3
    assert all(len(re.findall(r"M\d+ \d+", panel)) == 600 for panel in panels)
    spread = [np.array([tuple(map(int, pair)) for pair in re.findall(r"M(\d+) (\d+)", panel)]).std() for panel in panels[:3]]
    assert spread[0] < spread[1] < spread[2]
    for number in ("0.3300", "-0.0200", "-0.0100", "0.4300", "0.8300"):
        assert number in text


def test_a_point_stands_where_its_coordinates_say() -> None:
    points = np.array([[0.0, 0.0], [10.0, 5.0], [0.0, 5.0]])
    drawn = str(planes.plane(points, np.array([0, 1, planes.OTHER]), ((0.0, 10.0), (0.0, 5.0)), label="x"))
    at = {kind: (int(x), int(y)) for kind, x, y in re.findall(r'<path class="\w+ (\w+)"[^>]*d="M(\d+) (\d+)', drawn)}
    assert at == {"s0": (12, 444), "s1": (588, 156), "other": (12, 156)}  # one unit is as long upwards as sideways


def test_marks_of_twenty_classes_differ() -> None:
    marks = re.findall(r'<path class="\w+ (s\d)" stroke-width="\d+" d="M12 12([^"]*)"', str(planes.legend([f"c{i}" for i in range(20)], others=0)))
    assert len(marks) == len(set(marks)) == 20
    assert planes.styles(np.array([4, 0, 2, 4]), [2, 4]).tolist() == [1, planes.OTHER, 0, 1]


def test_many_epochs_are_thinned_and_keep_both_ends(run: Run) -> None:
    findings = make_findings(run.path / "inside", num_points=50)
    coordinates, _ = projected(50, 3)
    folder = run.path / "inside"
    with np.load(folder / ARRAYS) as file:
        arrays: dict[str, Any] = {**file, "projection/tsne": np.concatenate([coordinates] * 4)}
    np.savez(folder / ARRAYS, **arrays)
    tsne = findings.projections[1]
    panels = [Panel(e + 1, *(getattr(tsne.panels[e % 3], m) for m in Panel.__dataclass_fields__ if m != "epoch")) for e in range(12)]
    findings.projections[1] = type(tsne)(tsne.name, tsne.how, panels)
    findings.save(folder)
    text = Page(section(run)).text
    assert "3 of 12 epochs are drawn" in text
    assert all(f"epoch {e}" in text for e in (1, 12))


def test_a_probe_of_one_class_has_no_silhouette(run: Run) -> None:
    findings = make_findings(run.path / "inside", classes=("cat",))
    for projection in findings.projections:
        projection.panels[:] = [dataclasses.replace(panel, silhouette=None, plane_silhouette=None) for panel in projection.panels]
    findings.save(run.path / "inside")
    html = section(run)
    assert html.count("<dd>n/a</dd>") == 2 * 6
    assert "silhouette n/a in feature space" in html


def test_positions_are_one_picture_or_the_sentence_why_not(run: Run) -> None:
    findings = make_findings(run.path / "inside", num_images=1, grid=(24, 24))
    html = section(run)
    assert pictures(html)[-1].shape == (599, 599, 3)
    assert "24 x 24 positions, 1 prefix row left out." in Page(html).text
    findings.positions = PositionsFinding("rotary", "This model turns its queries and keys: it has no position embedding.")
    findings.save(run.path / "inside")
    html = section(run)
    assert len(pictures(html)) == 3
    assert "it has no position embedding" in Page(html).text


def test_hostile_names_are_text(run: Run) -> None:
    findings = make_findings(run.path / "inside", classes=("cat", HOSTILE, '"><b>'))
    findings.notes, findings.model = [HOSTILE], HOSTILE
    findings.save(run.path / "inside")
    page = Page(render(run))
    assert {"script", "b"}.isdisjoint(tag for tag, _ in Page(section(run)).tags)
    assert page.text.count(HOSTILE) >= 4


def test_the_largest_section_stays_below_the_limit(tmp_path: Path) -> None:
    """Photos of pure noise, which compress worst, on as many images, classes and points as are shown."""
    run = make_run(tmp_path / "run", thumbnails=16, skill=1.0)
    folder = run.path / "inside"
    make_findings(folder, num_images=40, sizes=((400, 400),), num_points=4000, classes=tuple(f"class {i}" for i in range(40)), grid=(37, 37))
    random = np.random.default_rng(0)
    for file in (folder / IMAGES).iterdir():
        PIL.Image.fromarray(random.integers(0, 256, (400, 400, 3), dtype=np.uint8)).save(file, quality=95)
    path = write_report(run)
    assert path.stat().st_size < 5_000_000
    shown = re.search(r"Maps on (\d+) of 40 images", Page(path.read_text()).text)
    assert shown is not None
    assert 1 <= int(shown[1]) <= inside.MAX_IMAGES
    assert path.read_text().count('<article class="look">') == int(shown[1])


def test_images_beyond_the_budget_of_bytes_are_not_shown_and_counted(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    make_findings(run.path / "inside", num_images=6)
    html = section(run)
    one = sum(len(text) for text in re.findall(r'src="(data:image/webp[^"]+)"', html)[:3])
    assert "Maps on 6 images" in Page(html).text
    positions = len(re.findall(r'src="(data:image/webp[^"]+)"', html)[-1])
    monkeypatch.setattr(inside, "MAX_PICTURE_BYTES", int(2.5 * one) + positions)
    html = section(run)
    assert "Maps on 2 of 6 images" in Page(html).text
    assert html.count('<article class="look">') == 2


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"maps/attention": None}, r"arrays\.npz: maps/attention is missing"),
        ({"maps/attention": np.ones((3, 6, 4), np.float32)}, r"maps/attention: expected finite numbers >= 0 of shape \(3, 4, 6\), got float32 \(3, 6, 4\)"),
        ({"maps/grad_cam": np.full((3, 2, 3), -1.0)}, "maps/grad_cam: expected finite numbers >= 0"),
        ({"projection/tsne": np.zeros((3, 300, 3))}, r"projection/tsne: expected coordinates of shape \(epochs, points, 2\) for 3 panels"),
        ({"probe/labels": np.full(300, 7)}, "expected 300 labels from 0 to 2"),
        ({"positions": np.zeros((6, 6, 6, 5), np.float32)}, r"positions: expected finite numbers of shape \(6, 6, 6, 6\)"),
        ({"positions": np.array([object()])}, r"arrays\.npz: cannot be read as arrays"),
    ],
)
def test_arrays_that_contradict_the_findings_are_errors(run: Run, changed: dict[str, Any], said: str) -> None:
    make_findings(run.path / "inside", changed=changed)
    with pytest.raises(RunError, match=said):
        render(run)


def test_missing_and_damaged_files_are_named(run: Run) -> None:
    folder = run.path / "inside"
    make_findings(folder)
    arrays = (folder / ARRAYS).read_bytes()
    (folder / ARRAYS).write_bytes(arrays[:-100])
    with pytest.raises(RunError, match=r"arrays\.npz: cannot be read as arrays"):
        render(run)
    (folder / ARRAYS).unlink()
    with pytest.raises(RunError, match=r"arrays\.npz: the file is missing"):
        render(run)
    (folder / FINDINGS).write_text("{}")
    with pytest.raises(RunError, match=r"findings\.json: not readable"):
        render(run)
    (folder / FINDINGS).unlink()
    with pytest.raises(RunError, match=r"findings\.json: expected what `pellucid inside` writes"):
        render(run)


def test_a_picture_of_another_size_is_an_error(run: Run) -> None:
    make_findings(run.path / "inside", sizes=((120, 160),))
    PIL.Image.new("RGB", (120, 160)).save(run.path / "inside" / IMAGES / "1.webp")
    with pytest.raises(RunError, match=r"1\.webp: .*expected a picture of 120 x 160 pixels or a smaller copy, got 160 x 120"):
        render(run)


def test_an_unfinished_run_may_lack_its_findings(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", status="interrupted")
    (run.path / "inside").mkdir()
    assert 'id="inside"' not in render(run)


def test_findings_of_nothing_but_notes_are_shown(run: Run) -> None:
    Findings("0.1.0", "model", "weights", notes=["nothing was asked for"], epochs=EPOCHS).save(run.path / "inside")
    text = Page(section(run)).text
    assert "nothing was asked for" in text
    assert "Maps on" not in text
