from __future__ import annotations

import base64
import dataclasses
import io
import re
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import sklearn.metrics
from numpy.typing import NDArray

from fabricate_segmentation import CLASSES, EPOCHS, keep_masks, make_segmentation, mask_format, predicted, scene
from pellucid import overlap
from pellucid.errors import RunError
from pellucid.figures.masks import RIGHT, WRONG
from pellucid.mask_findings import PICTURES, MaskFindings, load_kept_masks
from pellucid.palettes import IGNORED
from pellucid.report import masks, render, write_report
from pellucid.run import Run
from test_report import HOSTILE, Page

SIZE, N, NOISE = (64, 64), 8, 0.2


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_segmentation(tmp_path_factory.mktemp("made") / "run", n=N, size=SIZE, noise=NOISE)


@pytest.fixture
def run(made: Run, tmp_path: Path) -> Run:
    shutil.copytree(made.path, tmp_path / "run")
    return Run(tmp_path / "run")


def section(run: Run, name: str) -> str:
    found = re.search(rf'<section id="{name}".*?</section>', render(run), flags=re.DOTALL)
    assert found is not None, name
    return found[0]


def pixels() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """(labels, predictions) of every valid pixel of the fabricated split."""
    truths = [scene(i, SIZE)[1] for i in range(N)]
    found = [predicted(truth, NOISE * (0.5 + i / N), i)[0] for i, truth in enumerate(truths)]
    return np.concatenate([t[t != IGNORED] for t in truths]), np.concatenate([f[t != IGNORED] for t, f in zip(truths, found, strict=True)])


def decoded(uri: str) -> NDArray[np.uint8]:
    """(h, w, 4) of a picture of the page."""
    with PIL.Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))) as opened:
        return np.asarray(opened.convert("RGBA"))


def random_pixels(random: np.random.Generator, below: int, *shape: int) -> NDArray[np.uint8]:
    return random.integers(0, below, shape, dtype=np.uint8)


def sources(html: str) -> list[str]:
    return re.findall(r'<img[^>]* src="(data:[^"]+)"', html)


# ── the page ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_page_is_one_well_formed_offline_file(run: Run) -> None:
    keep_masks(run.inside, unmasked=(1,))
    path = write_report(run)
    page = Page(path.read_text(encoding="utf-8"))
    assert not page.open
    assert {str(attributes["type"]) for attributes in page.named("script")} == {"application/json", "module"}
    addresses = [str(value) for _, attributes in page.tags for key, value in attributes.items() if key in ("src", "href")]
    assert all(address.startswith(("#", "data:")) for address in addresses)
    assert not [key for _, attributes in page.tags for key in attributes if key.startswith("on")]
    assert all(attributes.get("alt") for attributes in page.named("img"))
    assert all(attributes.get("scope") for attributes in page.named("th"))
    assert len(page.named("table")) == len(page.named("caption"))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {str(a["href"])[1:] for a in page.named("a")} <= set(ids)
    assert render(run) == path.read_text(encoding="utf-8")


def test_the_headline_is_miou_and_every_number_is_on_the_page(run: Run) -> None:
    text = Page(render(run)).text
    assert "mIoU on val" in text
    for measurement in run.record.measurements:
        assert str(measurement) in text, measurement.key


def test_ious_of_classes_stand_in_their_own_table_alone(run: Run) -> None:
    numbers = Page(section(run, "numbers")).text
    assert "iou[" not in numbers.replace("frequency_weighted_iou", "")
    assert "IoU of each class on val stands under Classes" in numbers
    assert "convention standard: what is predicted on ignored pixels counts nowhere" in numbers


def test_an_unfinished_run_has_no_masks_and_a_page(tmp_path: Path) -> None:
    html = render(make_segmentation(tmp_path / "run", status="interrupted"))
    assert "no number yet" in html
    assert 'id="hardest"' not in html
    assert 'id="masks"' not in html


def test_hostile_names_are_text(run: Run) -> None:
    findings = keep_masks(run.inside, num=1)
    findings.pictures[0] = dataclasses.replace(findings.pictures[0], file=f'{HOSTILE}"><b>')
    with np.load(run.inside / "masks.npz") as arrays:
        findings.save(run.inside, {**arrays})
    page = Page(render(run))
    assert {str(attributes["type"]) for attributes in page.named("script")} == {"application/json", "module"}
    assert "b" not in [tag for tag, _ in page.tags]
    assert HOSTILE in page.text


# ── classes and confusion ────────────────────────────────────────────────────────────────────────────────────────


def test_numbers_of_each_class_are_those_of_sklearn(run: Run) -> None:
    labels, found = pixels()
    precision, recall, _, counts = sklearn.metrics.precision_recall_fscore_support(labels, found, labels=range(7), zero_division=np.nan)
    ious = sklearn.metrics.jaccard_score(labels, found, labels=range(7), average=None)
    boundary = overlap.boundary_scores(run.mask_predictions("val").boundary)
    rows = re.findall(r"<tr><th scope=\"row\">.*?</tr>", section(run, "classes"))
    assert len(rows) == 7
    for i, row in enumerate(rows):
        cells = re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)
        assert cells[0].endswith(CLASSES[i])
        assert f"background:rgb({' '.join(map(str, mask_format().colours[i]))})" in cells[0]
        shown = [f"{3 * counts[i]:,}", f"{counts[i]:,}", f"{counts[i] / len(labels):.4f}", f"{ious[i]:.4f}"]
        assert cells[1:5] == shown
        assert cells[6:] == [f"{precision[i]:.4f}", f"{recall[i]:.4f}", f"{boundary[i]:.4f}"]


def test_a_class_without_an_iou_says_why(run: Run) -> None:
    record = run.record
    record.measurements = [m for m in record.measurements if m.name != "iou[ring]"]
    run.write_record(record)
    assert "absent from labels and predictions" in Page(section(run, "classes")).text


def test_a_class_that_does_not_count_says_that_the_convention_leaves_it_out(tmp_path: Path) -> None:
    run = make_segmentation(tmp_path / "run", overrides=["scoring.convention=foreground"])
    text = Page(section(run, "classes")).text
    assert "left out by the convention" in text
    assert "absent from labels" not in text


def test_confusion_is_the_share_of_each_label_in_percent(run: Run) -> None:
    labels, found = pixels()
    counts = sklearn.metrics.confusion_matrix(labels, found, labels=range(7))
    shown = re.findall(r'<td class="[^"]*" style="--p:(\d+)%" title="([\d,]+) pixels">([^<]+|&lt;1)</td>', section(run, "confusion"))
    assert len(shown) == 49
    for (shade, pixel_text, text), (i, j) in zip(shown, np.ndindex(7, 7), strict=True):
        share = 100 * counts[i, j] / counts[i].sum()
        assert pixel_text == f"{counts[i, j]:,}"
        assert int(shade) == round(share)
        assert text == ("&lt;1" if 0 < share < 0.5 else str(round(share)))
    (i, j), most = max(((pair, int(counts[pair])) for pair in np.ndindex(7, 7) if pair[0] != pair[1]), key=lambda item: item[1])
    said = f"Most often confused: {CLASSES[i]} taken for {CLASSES[j]}, {most:,} of {counts[i].sum():,} pixels"
    assert said in " ".join(Page(section(run, "confusion")).text.split())


def test_many_classes_are_one_picture(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masks, "MATRIX_CLASSES", 6)
    html = section(run, "confusion")
    assert 'class="matrix"' not in html
    assert decoded(sources(html)[0]).shape == (7, 7, 4)


def test_a_page_of_changed_predictions_says_so_at_the_top(run: Run) -> None:
    assert "The saved predictions" not in render(run)
    record = run.record
    record.measurements[0] = dataclasses.replace(record.measurements[0], value=record.measurements[0].value + 1e-4)
    run.write_record(record)
    assert re.search(r"The saved predictions of val give mIoU 0\.\d{4}, the run states 0\.\d{4}\.", render(run))


def test_predictions_of_other_classes_are_an_error(run: Run) -> None:
    found = run.mask_predictions("val")
    fewer = dataclasses.replace(found, confusion=found.confusion[:, :-1, :-1], boundary=found.boundary[:, :-1])
    fewer = dataclasses.replace(fewer, masks=(b"",) * N)
    run.write_mask_predictions("val", fewer, list(CLASSES[:-1]), mask_format())
    with pytest.raises(RunError, match=r"val\.npz: expected confusions of 7 classes as in data\.json, got \(8, 7, 6\)"):
        render(run)


def test_pixels_of_each_class_stand_with_the_data(run: Run) -> None:
    text, html = Page(section(run, "data")).text, section(run, "data")
    counted = run.data.splits["val"].pixels
    assert f"{sum(counted):,}" in text
    assert "smallest class" not in text
    lengths = [int(length) for length in re.findall(r"--p:(\d+)%", html)]
    assert lengths == [value for n in counted for value in [100 * n // max(counted)] * 2]
    assert f"{counted[-1] / sum(counted):.4f}" in text
    assert "ignored" in text


# ── hardest images ───────────────────────────────────────────────────────────────────────────────────────────────


def test_the_hardest_images_stand_worst_first_with_their_own_numbers(run: Run) -> None:
    html = section(run, "hardest")
    expected = []
    for i in range(N):
        truth = scene(i, SIZE)[1]
        label, guess = truth[truth != IGNORED], predicted(truth, NOISE * (0.5 + i / N), i)[0][truth != IGNORED]
        miou = sklearn.metrics.jaccard_score(label, guess, average="macro")  # over the classes in either, as it takes them
        expected.append((sklearn.metrics.accuracy_score(label, guess), miou, f"scenes-val-{i:06d}.png"))
    items = re.findall(r"<li>.*?</li>", html, flags=re.DOTALL)
    found = [re.search(r"accuracy</span> ([\d.]+).*image</span> ([\d.]+).*title=\"([^\"]+)\"", item, flags=re.DOTALL) for item in items]
    assert [m.groups() for m in found if m] == [(f"{a:.4f}", f"{m:.4f}", file) for a, m, file in sorted(expected)]
    assert len(sources(html)) == 3 * N
    worst = int(sorted(expected)[0][2][-10:-4])
    truth = scene(worst, SIZE)[1]
    assert np.array_equal(decoded(sources(items[0])[1])[truth != IGNORED][:, :3], mask_format().colours[truth[truth != IGNORED]])


def test_a_picture_that_is_gone_or_damaged_is_said(run: Run) -> None:
    folder = run.thumbnails / "val"
    for file in folder.glob("*-truth.png"):
        file.write_bytes(b"no picture")
    text = Page(section(run, "hardest")).text
    assert text.count("mask: picture cannot be read") == N
    for file in folder.iterdir():
        file.unlink()
    assert Page(section(run, "hardest")).text.count("predicted: no picture was kept") == N


def test_a_split_without_an_error_has_no_hardest_image(tmp_path: Path) -> None:
    run = make_segmentation(tmp_path / "run", noise=0.0)
    assert "None: every valid pixel of val was predicted as labelled." in Page(section(run, "hardest")).text
    assert "Nothing was confused." in section(run, "confusion")


# ── masks over epochs ────────────────────────────────────────────────────────────────────────────────────────────


def stills(html: str) -> list[str]:
    """The figures of a section, in order: of each picture image and ground truth, then prediction and errors of the first and of the last epoch."""
    return re.findall(r"<figure>.*?</figure>", html, flags=re.DOTALL)


def test_a_run_that_kept_no_masks_has_no_section(run: Run) -> None:
    html = render(run)
    assert "#masks" not in html
    assert 'data-view="masks"' not in html


def test_first_and_last_mask_stand_with_their_numbers(run: Run) -> None:
    findings = keep_masks(run.inside, num=2)
    shown = stills(section(run, "masks"))
    assert len(shown) == 2 * 6
    for k, picture in enumerate(findings.pictures):
        for html, numbers in zip(shown[6 * k + 2 : 6 * k + 6 : 2], (picture.epochs[0], picture.epochs[-1]), strict=True):
            text = " ".join(Page(html).text.split())
            assert f"epoch {numbers.epoch} prediction" in text
            assert f"pixel accuracy{numbers.pixel_accuracy}mIoU of the picture{numbers.miou}confidence where right" in text
    assert f"at the first and the last of {len(EPOCHS)} epochs" in section(run, "masks")


def test_masks_have_the_colours_of_their_classes_and_errors_say_where(run: Run) -> None:
    findings = keep_masks(run.inside, num=1)
    kept = load_kept_masks(run.inside, findings, 0)
    assert kept.truth is not None
    html = section(run, "masks")
    _, truth, *shown = map(decoded, sources(html))
    valid = kept.truth != IGNORED
    assert np.array_equal(truth[valid][:, :3], mask_format().colours[kept.truth[valid]])
    assert np.array_equal(truth[..., 3], np.where(valid, 255, 0))
    for e, (predicted_, errors) in zip((0, -1), (shown[:2], shown[2:]), strict=True):
        assert np.array_equal(predicted_[..., :3], mask_format().colours[kept.predicted[e]])
        assert (predicted_[..., 3] == 255).all()
        right = kept.predicted[e] == kept.truth
        assert np.array_equal(errors[valid][:, :3], np.where(right[..., None], RIGHT, WRONG)[valid])
        assert np.array_equal(errors[..., 3], np.where(valid, 255, 0))
        sure = kept.confidence[e] / 255
        assert f"<dt>confidence where right</dt><dd>{sure[valid & right].mean():.4f}" in html
        assert f"<dt>confidence where wrong</dt><dd>{sure[valid & ~right].mean():.4f}" in html


def test_confidence_where_nothing_is_wrong_is_none(run: Run) -> None:
    keep_masks(run.inside, num=1, noise=0.0)
    assert section(run, "masks").count("<dt>confidence where wrong</dt><dd>none</dd>") == 2


def test_a_photograph_without_a_mask_shows_no_errors_and_says_that_nothing_is_measured(run: Run) -> None:
    keep_masks(run.inside, num=1, unmasked=(0,))
    html = section(run, "masks")
    assert len(sources(html)) == 3
    assert html.count("not measured: this picture has no mask") == 2
    assert "confidence where" not in html
    assert "this picture has no mask, so that nothing says what is wrong" in html


def test_one_epoch_stands_once(run: Run) -> None:
    keep_masks(run.inside, num=1, epochs=(6,))
    assert len(stills(section(run, "masks"))) == 4


def test_the_largest_page_stays_below_the_limit_and_says_what_it_leaves_out(tmp_path: Path) -> None:
    """24 pictures of 512 pixels and photographs of pure noise, which compress worst, predicted by noise at 3 epochs."""
    run = make_segmentation(tmp_path / "run", n=16, size=(160, 160), noise=0.9)
    findings = keep_masks(run.inside, num=1, size=(512, 512))
    random = np.random.default_rng(0)
    findings.pictures *= 24
    arrays = {f"truth/{i}": random_pixels(random, 7, 512, 512) for i in range(masks.MAX_PICTURES)}
    arrays |= {f"predicted/{i}": random_pixels(random, 7, 3, 512, 512) for i in range(masks.MAX_PICTURES)}
    arrays |= {f"confidence/{i}": random_pixels(random, 256, 3, 512, 512) for i in range(masks.MAX_PICTURES)}
    findings.save(run.inside, arrays, [random_pixels(random, 256, 512, 512, 3)] * masks.MAX_PICTURES)
    path = write_report(run)
    assert path.stat().st_size < 5_000_000
    html = path.read_text(encoding="utf-8")
    shown = html.count('<article class="look masked"')
    assert 1 <= shown < masks.MAX_PICTURES
    assert f"{shown} of 24 pictures are shown" in html
    found = masks.read_masks_over_epochs(run, room=10**9)
    assert found is not None
    assert sum(look.bytes for look in found.looks) <= masks.MAX_STILL_BYTES


def test_damaged_or_exchanged_pictures_are_said_or_refused(run: Run) -> None:
    keep_masks(run.inside, num=2)
    (run.inside / PICTURES / "0.webp").write_bytes(b"no picture")
    (run.inside / PICTURES / "1.webp").unlink()
    text = Page(section(run, "masks")).text
    assert "picture cannot be read" in text
    assert "no picture was kept" in text
    PIL.Image.new("RGB", (64, 96)).save(run.inside / PICTURES / "1.webp")
    with pytest.raises(RunError, match=r"1\.webp: expected a picture of 64 x 96 pixels, got 96 x 64; the folder was changed"):
        render(run)


def test_findings_of_no_picture_are_a_section_of_notes(run: Run) -> None:
    findings = MaskFindings("0.1.0", list(CLASSES), mask_format(), [6], "last epoch", notes=["nothing was looked at"])
    findings.save(run.inside, {})
    assert "nothing was looked at" in Page(section(run, "masks")).text
