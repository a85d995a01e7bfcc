"""Scoring folders of predicted masks without a model, a run of a segmentation on other pairs, and predictions as files."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pellucid import recipe as recipes
from pellucid.data import scenes
from pellucid.errors import DataError, MissingError, UsageError
from pellucid.evaluate import evaluate, write_masks
from pellucid.mask_folders import evaluate_masks
from pellucid.palettes import IGNORED
from pellucid.run import Measurement, Run
from pellucid.train import train

Command = Callable[..., tuple[int, str, str]]

CLASSES = ("background", "circle", "other")
COLOURS = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 255]], np.uint8)
VOID = (255, 255, 255)
RECIPE = """\
task: segmentation
data:
  source: pairs
  train: train
  val: val
  palette: {background: [0, 0, 0], circle: [255, 0, 0], other: [0, 255, 255]}
  ignored: [[255, 255, 255]]
  threshold: 128
  image_size: 32
model: {name: smp/Unet, encoder: tu-test_resnet, options: {encoder_depth: 3, decoder_channels: [16, 12, 8]}}
train:
  batch_size: 4
  threads: 1
  phases: [{epochs: 2, optimizer: {name: adamw, lr: 3e-3}}]
"""


def mask_of(i: int, split: str) -> np.ndarray:
    """(24, 32) uint8: a drawn scene in three classes, a corner of it ignored."""
    drawn = scenes.draw(i, split=split, image_size=(24, 32)).mask
    mask = np.where(drawn == 0, 0, np.where(drawn == 1, 1, 2)).astype(np.uint8)
    mask[:3, :5] = IGNORED
    return mask


def save_mask(file: Path, mask: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    table = np.full((256, 3), 77, np.uint8)
    table[:3], table[IGNORED] = COLOURS, VOID
    Image.fromarray(table[mask]).save(file)


def draw_pairs(folder: Path, split: str, count: int) -> Path:
    """`count` pairs 0000_sat.jpg and 0000_mask.png, every third in a folder of its own."""
    for i in range(count):
        place = folder / ("far" if i % 3 == 2 else "") / f"{i:04}_sat.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scenes.draw(i, split=split, image_size=(24, 32)).image).save(place)
        save_mask(place.with_name(f"{i:04}_mask.png"), mask_of(i, split))
    return folder


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train, val and a recipe; read only."""
    folder = tmp_path_factory.mktemp("pairs")
    draw_pairs(folder / "train", "train", 8)
    draw_pairs(folder / "val", "val", 6)
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


@pytest.fixture(scope="module")
def trained(drawn: Path) -> Iterator[Run]:
    """A finished run on these pairs; read only."""
    threads = torch.get_num_threads()
    yield train(drawn / "recipe.yaml", out=drawn / "run", quiet=True)
    torch.set_num_threads(threads)


def guess(i: int) -> np.ndarray:
    """(24, 32) uint8 in 0 .. 2: the true mask of val with a stripe of wrong pixels."""
    mask = mask_of(i, "val")
    mask[mask == IGNORED] = 2
    mask[:, 4 * i : 4 * i + 6] = (mask[:, 4 * i : 4 * i + 6] + 1 + i % 2) % 3
    return mask


@pytest.fixture
def predicted(tmp_path: Path) -> Path:
    """Predictions of val as somebody else's program writes them."""
    for i in range(6):
        save_mask(tmp_path / "predicted" / ("far" if i % 3 == 2 else "") / f"{i:04}_mask.png", guess(i))
    return tmp_path / "predicted"


def recipe_of(drawn: Path, *overrides: str) -> recipes.Recipe:
    return recipes.load(drawn / "recipe.yaml", list(overrides))


def by_name(found: list[Measurement]) -> dict[str, Measurement]:
    return {measurement.name: measurement for measurement in found}


def direct() -> dict[str, float]:
    """IoUs and pixel accuracy from their definition, pixel by pixel."""
    truth = np.concatenate([mask_of(i, "val").ravel() for i in range(6)])
    guessed = np.concatenate([guess(i).ravel() for i in range(6)])[truth != IGNORED]
    truth = truth[truth != IGNORED]
    ious = {name: ((truth == c) & (guessed == c)).sum() / ((truth == c) | (guessed == c)).sum() for c, name in enumerate(CLASSES)}
    return {"miou": float(np.mean(list(ious.values()))), "pixel_accuracy": float((truth == guessed).mean()), **{f"iou[{n}]": v for n, v in ious.items()}}


# ── folders of predicted masks ────────────────────────────────────────────────────────────────────────────────


def test_predicted_masks_are_scored_by_the_definition(drawn: Path, predicted: Path) -> None:
    found = by_name(evaluate_masks(recipe_of(drawn), predicted))
    for name, value in direct().items():
        assert found[name].value == pytest.approx(value, abs=1e-12), name
    assert (found["miou"].split, found["miou"].n, found["miou"].seed) == ("val", 6, 1)
    assert found["miou"].how.endswith(f"masks of {predicted}")
    assert {"boundary_f", "class_accuracy"} <= set(found)
    assert not {"loss", "calibration_error"} & set(found), "masks have no probabilities"


def test_a_true_mask_scores_one_against_itself_in_every_form_of_truth(drawn: Path, tmp_path: Path) -> None:
    """Pairs beside each other, pairs in two folders, and masks alone; and the split of the recipe."""
    masks = tmp_path / "alone"
    for i in range(6):
        filled = mask_of(i, "val")
        filled[filled == IGNORED] = 0
        save_mask(masks / ("far" if i % 3 == 2 else "") / f"{i:04}_mask.png", filled)
    recipe = recipe_of(drawn)
    for data in (None, drawn / "val", masks):
        found = by_name(evaluate_masks(recipe, masks, data=data))
        assert found["miou"].value == 1.0, data
        assert found["miou"].split == ("val" if data is None else "data")
        assert found["miou"].n == 6


def test_two_folders_of_equal_stems_are_pairs(drawn: Path, tmp_path: Path) -> None:
    for i in range(4):
        (tmp_path / "street").mkdir(exist_ok=True)
        Image.fromarray(scenes.draw(i, split="val", image_size=(24, 32)).image).save(tmp_path / "street" / f"{i}.png")
        save_mask(tmp_path / "street_masks" / f"{i}.png", mask_of(i, "val"))
        save_mask(tmp_path / "guessed" / f"{i}.png", guess(i))
    found = by_name(evaluate_masks(recipe_of(drawn), tmp_path / "guessed", data=tmp_path / "street"))
    alone = by_name(evaluate_masks(recipe_of(drawn), tmp_path / "guessed", data=tmp_path / "street_masks"))
    assert found["miou"].n == alone["miou"].n == 4
    assert found["miou"].value == alone["miou"].value < 1


def test_the_convention_is_that_of_the_recipe(drawn: Path, predicted: Path) -> None:
    standard, void = direct(), by_name(evaluate_masks(recipe_of(drawn, "scoring.void=false_positive"), predicted))
    foreground = by_name(evaluate_masks(recipe_of(drawn, "scoring.convention=foreground"), predicted))
    assert foreground["miou"].value == pytest.approx((standard["iou[circle]"] + standard["iou[other]"]) / 2, abs=1e-12)
    assert "iou[background]" not in foreground
    assert void["iou[other]"].value < standard["iou[other]"], "the corner that is void was predicted as other"


def test_a_missing_mask_and_one_too_many_are_named(drawn: Path, predicted: Path) -> None:
    save_mask(predicted / "0077_mask.png", guess(0))
    told: list[str] = []
    evaluate_masks(recipe_of(drawn), predicted, told=told.append)
    assert told == [f"{predicted}: 1 files belong to no true mask and are not scored:\n  0077_mask.png"]
    (predicted / "far" / "0002_mask.png").unlink()
    with pytest.raises(DataError, match=r"1 of 6 predicted masks are missing:\n  far/0002_mask\.png\nEach true mask needs one of that name"):
        evaluate_masks(recipe_of(drawn), predicted)
    with pytest.raises(MissingError, match="nowhere: expected a folder of masks, there is none"):
        evaluate_masks(recipe_of(drawn), predicted / "nowhere")


def test_a_mask_of_another_size_is_named_with_both(drawn: Path, predicted: Path) -> None:
    save_mask(predicted / "0001_mask.png", guess(1)[::2, ::2])
    with pytest.raises(DataError, match=r"0001_mask\.png: expected 24x32 pixels \(height x width\), the size of the true mask, got 12x16; write predictions"):
        evaluate_masks(recipe_of(drawn), predicted)


def test_a_prediction_of_no_class_is_refused_with_its_count(drawn: Path, predicted: Path) -> None:
    mask = guess(1)
    mask[:3, :5] = IGNORED
    save_mask(predicted / "0001_mask.png", mask)
    evaluate_masks(recipe_of(drawn), predicted)  # void on what is void says nothing
    mask[10, 3:7] = IGNORED
    save_mask(predicted / "0001_mask.png", mask)
    words = r"0001_mask\.png: 4 of 768 pixels are predicted as ignored \(\[255, 255, 255\]\) where the class is known; .* write the most probable one there"
    with pytest.raises(DataError, match=words):
        evaluate_masks(recipe_of(drawn), predicted)


def test_a_colour_of_nobody_and_grey_values_are_refused(drawn: Path, predicted: Path) -> None:
    Image.fromarray(np.full((24, 32, 3), (0, 0, 255), np.uint8)).save(predicted / "0001_mask.png")
    with pytest.raises(DataError, match=r"0001_mask\.png: 1 colour that is no class, on 768 of 768 pixels: \[0, 0, 255\]"):
        evaluate_masks(recipe_of(drawn), predicted)
    Image.fromarray(guess(1)).save(predicted / "0001_mask.png")
    with pytest.raises(DataError, match=r"0001_mask\.png: expected a mask of colours \(RGB\), got one of grey values"):
        evaluate_masks(recipe_of(drawn), predicted)


def test_two_endings_of_one_name_are_refused(drawn: Path, predicted: Path) -> None:
    save_mask(predicted / "0001_mask.bmp", guess(1))
    with pytest.raises(DataError, match=r"0001_mask\.bmp and 0001_mask\.png are both the mask 0001_mask; keep one"):
        evaluate_masks(recipe_of(drawn), predicted)
    (predicted / "0001_mask.png").unlink()
    assert by_name(evaluate_masks(recipe_of(drawn), predicted))["miou"].value == pytest.approx(direct()["miou"], abs=1e-12)


def test_a_split_that_is_not_there_and_a_recipe_without_masks_are_refused(drawn: Path, predicted: Path, small_recipe: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--split test: the recipe's data has train, val; name one of them"):
        evaluate_masks(recipe_of(drawn), predicted, split="test")
    (tmp_path / "small.yaml").write_text(small_recipe)
    with pytest.raises(UsageError, match="belongs to segmentation; the recipe's task is classification"):
        evaluate_masks(recipes.load(tmp_path / "small.yaml"), predicted)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="expected pairs of images and masks, or masks alone"):
        evaluate_masks(recipe_of(drawn), predicted, data=tmp_path / "empty")


def test_masks_of_drawn_scenes_are_scored_against_their_split(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        RECIPE.partition("data:")[0] + "data: {source: scenes, train: 8, val: 5, image_size: 32}\nmodel:" + RECIPE.partition("model:")[2]
    )
    (tmp_path / "guessed").mkdir()
    for i in range(5):
        Image.fromarray(scenes.draw(i, split="val", image_size=(32, 32)).mask).save(tmp_path / "guessed" / f"{Path(scenes.name(i, split='val')).stem}.png")
    recipe = recipes.load(tmp_path / "r.yaml")
    assert evaluate_masks(recipe, tmp_path / "guessed")[0].value == 1.0
    with pytest.raises(UsageError, match="source scenes has none. Leave --data out"):
        evaluate_masks(recipe, tmp_path / "guessed", data=tmp_path)


def test_the_command_scores_masks_without_torch(drawn: Path, predicted: Path) -> None:
    script = "import sys; from pellucid.cli import main; code = main(sys.argv[1:]); print('torch' in sys.modules, file=sys.stderr); sys.exit(code)"
    arguments = ["evaluate", drawn / "recipe.yaml", "--masks", predicted, "--json", "--quiet"]
    done = subprocess.run([sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "False\n")
    found = json.loads(done.stdout)
    assert (found["recipe"], found["masks"], found["split"]) == (str(drawn / "recipe.yaml"), str(predicted), "val")
    assert found["measurements"][0]["value"] == pytest.approx(direct()["miou"], abs=1e-12)


def test_what_cannot_be_evaluated_says_what_to_give(drawn: Path, predicted: Path, pellucid: Command) -> None:
    code, _, err = pellucid("evaluate", drawn / "recipe.yaml", "--data", drawn / "val")
    assert (code, err) == (2, f"{drawn / 'recipe.yaml'}: a recipe has no model: give a run folder, or --masks DIR (masks that are predicted already)\n")
    code, _, err = pellucid("evaluate", drawn / "recipe.yaml", "--masks", predicted, "--data", drawn / "val", "--split", "val")
    assert (code, "it goes with --masks and without --data" in err) == (2, True)
    code, out, err = pellucid("evaluate", drawn / "recipe.yaml", "--masks", predicted, "-q")
    assert (code, err) == (0, "")
    assert re.search(rf"^val/miou +{direct()['miou']:.4f} ", out, re.MULTILINE)


def test_truth_that_is_left_out_or_changed_since_the_run_is_told(trained: Run, drawn: Path, predicted: Path, tmp_path: Path) -> None:
    shutil.copytree(drawn / "val", tmp_path / "val")
    Image.fromarray(np.full((24, 32, 3), (0, 0, 255), np.uint8)).save(tmp_path / "val" / "0001_mask.png")
    told: list[str] = []
    found = evaluate_masks(recipe_of(drawn, "data.on_bad=skip"), predicted, data=tmp_path / "val", told=told.append)
    assert found[0].n == 5
    assert told[0] == "1 bad images or masks of the truth are left out, as data.on_bad: skip says:\n  train/0001_sat.jpg"
    copied = tmp_path / "run"
    shutil.copytree(trained.path, copied)
    (copied / "resolved.yaml").write_text((copied / "resolved.yaml").read_text().replace(str(drawn / "val"), str(tmp_path / "val")))
    save_mask(tmp_path / "val" / "0001_mask.png", guess(1))
    told.clear()
    evaluate_masks(Run(copied), predicted, told=told.append)
    assert told == ["the data of val is no longer what run was measured on: its content hash differs"]


# ── a run on other pairs ──────────────────────────────────────────────────────────────────────────────────────


def test_evaluating_the_val_pairs_gives_the_runs_own_numbers(trained: Run, drawn: Path) -> None:
    found, own = by_name(evaluate(trained, str(drawn / "val"))), by_name(trained.record.measurements)
    assert list(found) == list(own)
    assert {name: m.value for name, m in found.items()} == {name: m.value for name, m in own.items()}
    assert found["miou"].split == "data"


def test_the_runs_own_masks_score_what_the_run_reports(trained: Run, pellucid: Command) -> None:
    code, out, _ = pellucid("evaluate", trained.path, "--masks", trained.masks_folder("val"), "--json", "-q")
    assert code == 0
    found, own = {m["name"]: m["value"] for m in json.loads(out)["measurements"]}, by_name(trained.record.measurements)
    assert found == {name: m.value for name, m in own.items() if name not in ("loss", "calibration_error")}


def test_pairs_of_another_palette_are_refused(trained: Run, tmp_path: Path) -> None:
    draw_pairs(tmp_path / "other", "val", 3)
    for file in (tmp_path / "other").rglob("*_mask.png"):
        Image.fromarray(np.full((24, 32, 3), (0, 0, 255), np.uint8)).save(file)
    with pytest.raises(DataError, match=r"\[0, 0, 255\]"):
        evaluate(trained, str(tmp_path / "other"))
    for file in (tmp_path / "other").rglob("*_mask.png"):
        Image.fromarray(np.zeros((24, 32), np.uint8)).save(file)
    with pytest.raises(DataError, match="the masks hold values"):
        evaluate(trained, str(tmp_path / "other"))


# ── masks of any images ───────────────────────────────────────────────────────────────────────────────────────


def test_predict_writes_masks_that_read_back_and_keeps_sub_folders(trained: Run, drawn: Path, tmp_path: Path, pellucid: Command) -> None:
    code, out, err = pellucid("predict", trained.path, drawn / "val", "--out", tmp_path / "masks", "--confidence", "-q")
    assert code == 0
    assert err.startswith("note: 6 files are named as masks ({}_mask) and are not predicted:\n")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["filename"] for row in rows] == [str(file) for file in sorted((drawn / "val").rglob("*_sat.jpg"))]
    form = trained.data.mask_format
    assert form is not None
    for row in rows:
        file = Path(row["mask"])
        mask = form.read(file.read_bytes(), row["mask"])
        assert mask.shape == (24, 32)
        assert [float(row[name]) for name in CLASSES] == pytest.approx([float((mask == c).mean()) for c in range(3)], abs=1e-6)
        with Image.open(file.with_name(f"{file.stem}_confidence.png")) as confidence:
            assert (confidence.mode, confidence.size) == ("L", (32, 24))
    assert {row["mask"] for row in rows} >= {str(tmp_path / "masks" / "far" / "0002_mask.png"), str(tmp_path / "masks" / "0000_mask.png")}
    assert not list((tmp_path / "masks").rglob(".*")), "nothing half-written"


def test_predicted_masks_of_val_are_those_of_the_run(trained: Run, drawn: Path, tmp_path: Path) -> None:
    images = sorted((drawn / "val").rglob("*_sat.jpg"))
    written = list(write_masks(trained, [file for file in images if file.parent.name != "far"], tmp_path / "masks"))
    assert len(written) == 4
    for mask in written:
        assert Path(mask.mask).read_bytes() == (trained.masks_folder("val") / Path(mask.mask).name).read_bytes()


def test_predict_without_a_folder_and_two_images_of_one_mask_are_refused(trained: Run, drawn: Path, tmp_path: Path, pellucid: Command) -> None:
    image = drawn / "val" / "0000_sat.jpg"
    code, out, err = pellucid("predict", trained.path, image)
    assert (code, out, err) == (2, "", f"{trained.path} predicts masks: give --out DIR, the folder to write them into\n")
    (tmp_path / "again").mkdir()
    Image.open(image).save(tmp_path / "again" / "0000_sat.png")
    code, _, err = pellucid("predict", trained.path, image, tmp_path / "again" / "0000_sat.png", "--out", tmp_path / "masks", "-q")
    assert (code, f"{image} and {tmp_path / 'again' / '0000_sat.png'} would both be written to {tmp_path / 'masks' / '0000_mask.png'}" in err) == (2, True)
    assert not (tmp_path / "masks").exists()
    Image.open(image).save(tmp_path / "again" / "plain.png")
    code, _, err = pellucid("predict", trained.path, tmp_path / "again" / "plain.png", "--out", tmp_path / "again", "-q")
    assert (code, "plain.png would take the place of an image; choose another --out" in err) == (2, True)


def files_of(folder: Path) -> dict[str, bytes]:
    """{relative path: content} of all files below a folder."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def copied(trained: Run, folder: Path, data: Path, **changes: str) -> Path:
    """A copy of the run whose val split is another folder; changes: what stands in resolved.yaml and what to put there."""
    run = Path(shutil.copytree(trained.path, folder / "run"))
    text = (run / "resolved.yaml").read_text().replace(f"val: {trained.recipe.data.val}", f"val: {data}")
    for old, new in changes.items():
        assert f"{old}: null" in text
        text = text.replace(f"{old}: null", f"{old}: {new}")
    (run / "resolved.yaml").write_text(text)
    return run


@pytest.mark.parametrize("flags", [[], ["--overwrite"]])
def test_true_masks_are_never_replaced_by_predictions(trained: Run, tmp_path: Path, pellucid: Command, flags: list[str]) -> None:
    data = draw_pairs(tmp_path / "landcover", "val", 3)
    before = files_of(data)
    code, out, err = pellucid("predict", trained.path, data, "--out", data, "-q", *flags)
    mask = data / "0000_mask.png"
    said = f"{mask}: the mask predicted for {data / '0000_sat.jpg'} would take the place of a true mask; choose another --out than {data}"
    assert (code, out, err.splitlines()[-1]) == (2, "", said)
    code, _, err = pellucid("predict", trained.path, data / "0000_sat.jpg", "--out", data, "-q", *flags)
    assert (code, f"what is predicted into {data} would be taken for images or masks beside them by the next training" in err) == (2, True)
    code, _, err = pellucid("predict", trained.path, data, "--out", data / "predicted", "-q", *flags)
    assert (code, f"{data / 'predicted' / '0000_mask.png'}: what is predicted into {data} would be taken for images" in err) == (2, True)
    (tmp_path / "link").symlink_to(data)
    code, _, err = pellucid("predict", trained.path, data, "--out", tmp_path / "link", "-q", *flags)
    assert (code, "would take the place of a true mask" in err) == (2, True)
    assert files_of(data) == before


@pytest.mark.parametrize("flags", [[], ["--overwrite"]])
def test_folders_of_true_masks_are_left_alone(trained: Run, tmp_path: Path, pellucid: Command, flags: list[str]) -> None:
    """Those beside the images that are given, and those of the run's own data, by data.mask_dir too."""
    data, masks = tmp_path / "street", tmp_path / "street_masks"
    for i in range(2):
        (data / "far").mkdir(parents=True, exist_ok=True)
        Image.fromarray(scenes.draw(i, split="val", image_size=(24, 32)).image).save(data / "far" / f"{i}_sat.png")
        save_mask(masks / "far" / f"{i}_mask.png", mask_of(i, "val"))
    before = files_of(tmp_path)
    code, _, err = pellucid("predict", trained.path, data / "far", "--out", masks / "far", "-q", *flags)
    assert (code, f"{masks / 'far' / '0_mask.png'}: the mask predicted for {data / 'far' / '0_sat.png'} would take the place of a true mask" in err) == (
        2,
        True,
    )
    for out in (masks, masks / "deep" / "er"):
        code, _, err = pellucid("predict", trained.path, data, "--out", out, "--confidence", "-q", *flags)
        assert code == 2
        assert "would take the place of a true mask" in err or f"what is predicted into {masks} would be taken for true masks of {data} by the next" in err
    assert files_of(tmp_path) == before
    elsewhere = draw_pairs(tmp_path / "elsewhere", "val", 1)
    own = copied(trained, tmp_path / "a", data)
    code, _, err = pellucid("predict", own, elsewhere, "--out", masks, "-q", *flags)
    assert (code, f"what is predicted into {masks} would be taken for true masks of {data} by the next training" in err) == (2, True)
    code, _, err = pellucid("predict", own, elsewhere, "--out", data, "-q", *flags)
    assert (code, f"what is predicted into {data} would be taken for images or masks beside them" in err) == (2, True)
    given = copied(trained, tmp_path / "b", data, mask_dir=str(tmp_path / "truth" / "{split}"))
    for name, entry in (("val", elsewhere), ("elsewhere", elsewhere), ("elsewhere", elsewhere / "0000_sat.jpg")):
        code, _, err = pellucid("predict", given, entry, "--out", tmp_path / "truth" / name, "-q", *flags)
        said = f"what is predicted into {tmp_path / 'truth' / name} would be taken for true masks (data.mask_dir) by the next training"
        assert (code, said in err) == (2, True)
    assert not (tmp_path / "truth").exists()


def test_files_that_are_there_are_replaced_only_when_asked(trained: Run, drawn: Path, tmp_path: Path, pellucid: Command) -> None:
    out = tmp_path / "masks"
    image, other = drawn / "val" / "0000_sat.jpg", drawn / "val" / "0001_sat.jpg"
    assert pellucid("predict", trained.path, image, "--out", out, "--confidence", "-q")[0] == 0
    kept = files_of(out)
    (out / "0000_mask.png").write_bytes(b"drawn by hand")
    code, text, err = pellucid("predict", trained.path, other, image, "--out", out, "--confidence", "-q")
    assert (code, text) == (2, "")
    assert err == (
        f"{out}: 2 of 4 files to be written exist already:\n  {out / '0000_mask.png'}\n  {out / '0000_mask_confidence.png'}\n"
        "Choose another --out, or replace them with --overwrite.\n"
    )
    assert files_of(out) == kept | {"0000_mask.png": b"drawn by hand"}, "nor was the other image predicted"
    assert pellucid("predict", trained.path, image, "--out", out, "--confidence", "--overwrite", "-q")[0] == 0
    assert files_of(out) == kept


def test_masks_of_one_image_may_lie_below_its_folder(trained: Run, drawn: Path, tmp_path: Path, pellucid: Command) -> None:
    """As in `predict RUN photo.jpg --out masks` where the photograph is."""
    shutil.copy(drawn / "val" / "0000_sat.jpg", tmp_path / "photo.jpg")
    code, _, err = pellucid("predict", trained.path, tmp_path / "photo.jpg", "--out", tmp_path / "masks", "-q")
    assert (code, err, list(files_of(tmp_path / "masks"))) == (0, "", ["photo.png"])


def test_overwriting_labels_is_refused(small_run: Path, drawn: Path, pellucid: Command) -> None:
    code, _, err = pellucid("predict", small_run, drawn / "val", "--overwrite")
    assert (code, err) == (2, "--overwrite replaces masks and belongs to segmentation; a CSV is written anew in any case\n")


def test_exporting_a_segmentation_counts_pixels(trained: Run, tmp_path: Path, pellucid: Command) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra `export`")
    code, text, _ = pellucid("export", trained.path, "--out", tmp_path / "model.onnx", "--json")
    assert code == 0
    found = json.loads(text)
    assert (found["compared"], found["decided"], found["of"]) == (4, 4 * 32 * 32, "pixels")
    assert 4000 < found["same_argmax"] <= 4096


def test_confidence_of_labels_is_refused(small_run: Path, drawn: Path, pellucid: Command) -> None:
    code, _, err = pellucid("predict", small_run, drawn / "val", "--confidence")
    assert (code, "--confidence writes pictures beside masks and belongs to segmentation" in err) == (2, True)
