"""Segmentation as a whole: the gradient is that of all valid pixels of the batch, scores are those of the masks as they were drawn, bits stay."""

from __future__ import annotations

import copy
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from gradients import apart, flat, training_of, window_gradients, windows_of
from pellucid import recipe as recipes
from pellucid.data.images import resize
from pellucid.data.loader import pack_images
from pellucid.data.scenes import draw
from pellucid.distributed import ALONE
from pellucid.errors import DataError, InterruptedError, RecipeError, UsageError
from pellucid.inside.grad_cam import grad_cam
from pellucid.inside.pixel_scores import PixelScores, backbone_layer
from pellucid.models.segmenters import build_segmenter
from pellucid.palettes import IGNORED
from pellucid.run import Run
from pellucid.tasks import load_model
from pellucid.tasks.fullsize import View, calibration_of, predict_images
from pellucid.tasks.segmentation import Segmentation, _right
from pellucid.train import resume, train

SMALL = """\
task: segmentation
data: {source: scenes, train: 40, val: 18, image_size: 32}
model: {name: smp/Unet, encoder: tu-test_resnet, options: {encoder_depth: 3, decoder_channels: [16, 8, 8]}}
augment: {random_crop: 2, horizontal_flip: 0.5}
loss: {name: poly1}
train:
  batch_size: 16
  threads: 1
  phases:
    - {epochs: 2, optimizer: {name: adamw, lr: 1e-3}, schedule: {name: cosine, warmup_steps: 2}}
"""
PLAIN = "model={name: smp/Unet, encoder: tu-test_convnext, options: {encoder_depth: 3, decoder_channels: [16, 8, 8], decoder_use_norm: false}}"


def drawn_pairs(folder: Path, count: int, *, sizes: Sequence[tuple[int, int]] = ((32, 40), (48, 36), (33, 33)), void: bool = True) -> Path:
    """Scenes as files: <stem>.png with <stem>.png in <folder>_masks, values 0 to 6, 255 on a ragged border."""
    masks = folder.parent / f"{folder.name}_masks"
    folder.mkdir(parents=True)
    masks.mkdir()
    for i in range(count):
        scene = draw(i, split=folder.name, image_size=sizes[i % len(sizes)])
        mask = scene.mask.copy()
        if void:
            mask[: 3 + 4 * (i % 5)] = IGNORED
        Image.fromarray(scene.image).save(folder / f"{i:03d}.png")
        Image.fromarray(mask).save(masks / f"{i:03d}.png")
    return folder


def pairs_recipe(folder: Path, *, size: int = 32, fit: str = "stretch", extra: str = "") -> str:
    return SMALL.replace(
        "{source: scenes, train: 40, val: 18, image_size: 32}",
        f"{{source: pairs, train: {folder}/train, val: {folder}/val, ignored: [255], image_size: {size}, fit: {fit}}}",
    ) + extra  # fmt: skip


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    drawn_pairs(folder / "train", 20)
    drawn_pairs(folder / "val", 9)
    return folder


@pytest.fixture(scope="module")
def masked_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of SMALL that looks inside; read only."""
    folder = tmp_path_factory.mktemp("masked")
    (folder / "small.yaml").write_text(SMALL + "inside: {samples: 4}\n")
    return train(folder / "small.yaml", out=folder / "run", quiet=True, figures=False).path


# ── the gradient ──────────────────────────────────────────────────────────────────────────────────────────────


def defined(t: object, window: object, loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The gradient of a loss of logits and masks over the whole window, in float64, in one pass."""
    twin = copy.deepcopy(t.module).double().train()  # type: ignore[attr-defined]
    images = [t.pixels["train"].image(int(row)) for row in window.rows]  # type: ignore[attr-defined]
    inputs = t.task._augment(pack_images(images), samples=window.draws, epoch=window.epoch).double()  # type: ignore[attr-defined]
    masks = t.task._of(window)[0].long()  # type: ignore[attr-defined]
    twin.zero_grad(set_to_none=True)
    loss(twin(inputs), masks).backward()  # type: ignore[no-untyped-call]
    return flat(list(twin.parameters()))


def poly1(logits: Tensor, masks: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean over valid pixels of w (CE + (1 - p)), from the definition."""
    valid = masks != IGNORED
    p = logits.softmax(1).permute(0, 2, 3, 1)[valid]
    own = p[torch.arange(len(p)), masks[valid]]
    w = torch.ones_like(own) if weight is None else weight[masks[valid]]
    return (w * (-own.log() + 1 - own)).sum() / w.sum()


@pytest.mark.parametrize("micro", [8, 3, 1])
def test_the_gradient_is_that_of_all_valid_pixels_however_the_batch_is_cut(pairs: Path, tmp_path: Path, micro: int) -> None:
    text = pairs_recipe(pairs)
    changes = [PLAIN, "train.batch_size=8", f"train.micro_batch_size={micro}", "augment.rotation=20"]
    t = training_of(text, tmp_path / "twin", changes, ALONE)
    expected = [defined(t, window, poly1) for window in windows_of(t)]
    found = window_gradients(text, tmp_path / "loop", changes)
    assert len(found) == 3, "20 images in windows of 8: the last one is short"
    assert max(apart(a, b) for a, b in zip(found, expected, strict=True)) < 1e-5
    valid = [int((t.task._of(window)[0] != IGNORED).sum()) for window in windows_of(t)]  # type: ignore[attr-defined]
    assert valid[0] != valid[1] < 8 * 32 * 32, "windows differ in their valid pixels"


def test_class_weights_count_the_pixels_of_the_whole_window(pairs: Path, tmp_path: Path) -> None:
    text = pairs_recipe(pairs)
    changes = [PLAIN, "train.batch_size=10", "train.micro_batch_size=3", "loss.class_weights=median_frequency"]
    t = training_of(text, tmp_path / "twin", changes, ALONE)
    weight = t.task._class_weights.double()  # type: ignore[attr-defined]
    pixels = t.dataset.splits["train"].masks.pixels[:, :-1].astype(np.float64)  # type: ignore[union-attr]
    frequency = np.array([pixels[:, c].sum() / pixels[pixels[:, c] > 0].sum() for c in range(7)])
    np.testing.assert_allclose(weight.numpy(), np.median(frequency) / frequency, rtol=1e-6)
    expected = [defined(t, window, lambda logits, masks: poly1(logits, masks, weight)) for window in windows_of(t)]
    found = window_gradients(text, tmp_path / "loop", changes)
    assert max(apart(a, b) for a, b in zip(found, expected, strict=True)) < 1e-5


def test_a_sum_of_terms_is_the_sum_of_their_means(pairs: Path, tmp_path: Path) -> None:
    text = pairs_recipe(pairs)
    changes = [PLAIN, "train.batch_size=10", "train.micro_batch_size=4", "loss={name: sum, terms: [{name: cross_entropy}, {name: dice, weight: 0.5}]}"]

    def both(logits: Tensor, masks: Tensor) -> Tensor:
        dice = []
        for p, mask in zip(logits.softmax(1), masks, strict=True):
            valid = mask != IGNORED
            shares = [2 * p[c][mask == c].sum() / (p[c][valid].sum() + (mask == c).sum()) for c in mask[valid].unique().tolist()]
            dice.append(1 - torch.stack(shares).mean())
        return F.cross_entropy(logits, masks, ignore_index=IGNORED) + 0.5 * torch.stack(dice).mean()

    t = training_of(text, tmp_path / "twin", changes, ALONE)
    expected = [defined(t, window, both) for window in windows_of(t)]
    found = window_gradients(text, tmp_path / "loop", changes)
    assert max(apart(a, b) for a, b in zip(found, expected, strict=True)) < 1e-4


def test_a_batch_without_a_valid_pixel_moves_nothing_and_is_no_nan(tmp_path: Path) -> None:
    drawn_pairs(tmp_path / "data" / "train", 8, sizes=((32, 32),))
    drawn_pairs(tmp_path / "data" / "val", 4, sizes=((32, 32),))
    for i in range(8):
        if i not in (1, 6):
            Image.fromarray(np.full((32, 32), IGNORED, np.uint8)).save(tmp_path / "data" / "train_masks" / f"{i:03d}.png")
    changes = [PLAIN, "train.batch_size=2", "augment={}", "data.classes=[background, circle, square, triangle, star, cross, ring]"]
    found = window_gradients(pairs_recipe(tmp_path / "data"), tmp_path / "loop", changes)
    empty = [gradient for gradient in found if not gradient.any()]
    assert all(torch.isfinite(gradient).all() for gradient in found)
    assert len(empty) >= 2, "of four windows at most two hold one of the two masks that say something"
    finished = train(recipes.override(recipes.loads(pairs_recipe(tmp_path / "data")), changes), out=tmp_path / "run", quiet=True, figures=False)
    assert any("mask_all_ignored" in note for note in finished.record.notes)


def test_training_accuracy_is_the_share_of_valid_pixels_that_are_right(pairs: Path, tmp_path: Path) -> None:
    """With a rate too small to move a weight, the epoch's number is that of the initial weights on the epoch's own windows."""
    changes = [PLAIN, "train.batch_size=8", "train.micro_batch_size=3", "train.phases.0={epochs: 1, optimizer: {name: sgd, lr: 1e-12}}"]
    t = training_of(pairs_recipe(pairs), tmp_path / "twin", changes, ALONE)
    right, valid = 0, 0
    t.module.train()
    for window in windows_of(t):
        stored = [t.pixels["train"].image(int(row)) for row in window.rows]
        masks = t.task._of(window)[0]  # type: ignore[attr-defined]
        predicted = t.module(t.task._augment(pack_images(stored), samples=window.draws, epoch=0)).argmax(1)  # type: ignore[attr-defined]
        right, valid = right + int((predicted == masks).sum()), valid + int((masks != IGNORED).sum())
    run = train(recipes.override(recipes.loads(pairs_recipe(pairs)), changes), out=tmp_path / "run", quiet=True, figures=False)
    (line,) = [line for line in run.metrics() if line["kind"] == "train"]
    assert line["accuracy"] == pytest.approx(right / valid, abs=1e-3)


def test_equal_logits_count_for_the_first_class_alone() -> None:
    logits = torch.zeros(1, 3, 2, 2)
    assert int(_right(logits, torch.tensor([[[0, 1], [2, IGNORED]]]))) == 1
    rounded = torch.randn(4, 5, 8, 8, generator=torch.Generator().manual_seed(0)).round()
    targets = torch.randint(0, 5, (4, 8, 8), generator=torch.Generator().manual_seed(1))
    assert int(_right(rounded, targets)) == int((rounded.argmax(1) == targets).sum())


def test_memory_that_runs_out_shrinks_the_micro_batch_and_keeps_the_step(pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = [PLAIN, "train.batch_size=8", "train.phases.0={epochs: 1, optimizer: {name: sgd, lr: 0.05}}"]
    recipe = recipes.override(recipes.loads(pairs_recipe(pairs)), changes)
    whole = train(recipe, out=tmp_path / "whole", quiet=True, figures=False)
    real, calls = Segmentation.loss, []

    def failing(self: Segmentation, module: nn.Module, pack: Any) -> Any:
        calls.append(len(pack))
        if len(pack) > 3 and len(calls) > 1:
            raise torch.OutOfMemoryError("injected")
        return real(self, module, pack)

    monkeypatch.setattr(Segmentation, "loss", failing)
    short = train(recipe, out=tmp_path / "short", quiet=True, figures=False)
    assert any("memory ran out: the micro-batch is 2" in note for note in short.record.notes)
    a, b = (torch.cat([w.double().flatten() for w in load_model(run).state_dict().values()]) for run in (whole, short))
    assert apart(a, b) < 1e-6


# ── scores at the size of the mask ────────────────────────────────────────────────────────────────────────────


class Fixed(nn.Module):
    """Logits (B, 3, H, W) that are a smooth function of the image: three of its channels."""

    def forward(self, images: Tensor) -> Tensor:
        return F.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)


@pytest.mark.parametrize(("fit", "size"), [("stretch", (24, 20)), ("pad", (32, 32)), ("crop", (24, 24)), ("native", (20, 24))])
def test_every_fit_predicts_the_whole_image_at_its_own_size(fit: str, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8))
    own = (45, 61)
    photo = coarse.resize((own[1], own[0]), Image.Resampling.BICUBIC)
    view = View(size, fit, None, (0.0,) * 3, (1.0,) * 3, 0.25)
    stored = resize(photo, size, fit, None, "bilinear")
    (found,) = predict_images(lambda x: Fixed()(x), pack_images([stored]), [own], view)
    expected = np.asarray(photo).argmax(axis=2)
    assert found.mask.shape == own
    sharp = np.sort(np.asarray(photo).astype(int), axis=2)
    clear = sharp[..., 2] - sharp[..., 1] > 60  # where shrinking and growing again cannot change the largest channel
    assert clear.mean() > 0.3
    assert (found.mask == expected)[clear].mean() > 0.97


def test_tiles_of_a_native_image_are_the_whole_image_where_the_network_sees_no_further() -> None:
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 255, (150, 170, 3), dtype=np.uint8)
    tiled = View((64, 64), "native", None, (0.0,) * 3, (1.0,) * 3, 0.25)
    whole = dataclasses.replace(tiled, size=(150, 170))
    (a,), (b,) = (predict_images(lambda x: Fixed()(x), pack_images([pixels]), [(150, 170)], view) for view in (tiled, whole))
    np.testing.assert_allclose(a.confidence, b.confidence, atol=1e-5)
    assert (a.mask == b.mask).mean() > 0.9999
    assert a.digest != b.digest, "the digest is of the logits that the model gave, tile by tile"


def test_the_loss_and_the_calibration_are_those_of_the_valid_pixels() -> None:
    rng = np.random.default_rng(2)
    pixels = rng.integers(0, 255, (20, 24, 3), dtype=np.uint8)
    truth = rng.integers(0, 3, (20, 24)).astype(np.uint8)
    truth[:5] = IGNORED
    view = View((20, 24), "stretch", None, (0.0,) * 3, (0.2,) * 3, 0.25)
    (found,) = predict_images(lambda x: Fixed()(x), pack_images([pixels]), [(20, 24)], view, [truth])
    logits = Fixed()(torch.from_numpy(pixels).permute(2, 0, 1)[None].double() / 255 / 0.2)
    expected = F.cross_entropy(logits, torch.from_numpy(truth).long()[None], ignore_index=IGNORED, reduction="sum")
    assert found.loss == pytest.approx(float(expected), rel=1e-5)
    probabilities = logits.softmax(1)[0].numpy()
    valid = truth != IGNORED
    assert found.calibration[:, 0].sum() == valid.sum()
    assert found.calibration[:, 1].sum() == pytest.approx(probabilities.max(0)[valid].sum(), rel=1e-5)
    assert found.calibration[:, 2].sum() == (probabilities.argmax(0) == truth)[valid].sum()
    bins = np.ceil(probabilities.max(0)[valid] * 15) - 1
    np.testing.assert_array_equal(found.calibration[:, 0], np.bincount(bins.astype(int), minlength=15))


def test_a_confidence_on_the_edge_of_a_bin_belongs_to_the_bin_below() -> None:
    counts = calibration_of(np.array([1 / 3, 0.2, 1.0]), np.array([True, False, True]))
    np.testing.assert_array_equal(np.flatnonzero(counts[:, 0]), [2, 4, 14])
    np.testing.assert_array_equal(counts[[2, 4, 14], 2], [0, 1, 1])


def test_numbers_are_those_of_the_masks_that_were_drawn_not_of_shrunken_ones(pairs: Path, tmp_path: Path) -> None:
    run = train(recipes.loads(pairs_recipe(pairs, size=32, fit="pad")), out=tmp_path / "run", quiet=True, figures=False)
    found = run.mask_predictions("val")
    for i, name in enumerate(found.files):
        mask = np.asarray(Image.open(pairs / "val_masks" / name))
        predicted = np.asarray(Image.open(run.masks_folder("val") / name))
        assert predicted.shape == mask.shape
        expected = np.zeros((8, 7), np.int64)
        np.add.at(expected, (np.where(mask == IGNORED, 7, mask).ravel(), predicted.ravel()), 1)
        np.testing.assert_array_equal(found.confusion[i], expected)
    assert run.measurements["val/miou"].n == 9


def test_a_number_on_training_images_says_so(pairs: Path, tmp_path: Path) -> None:
    text = pairs_recipe(pairs).replace(f"val: {pairs}/val", f"val: {pairs}/train")
    run = train(recipes.override(recipes.loads(text), ["train.phases.0.epochs=1"]), out=tmp_path / "run", quiet=True, figures=False)
    assert "20 of its 20 images stand in another split too, so that it is no measure of new images" in run.measurements["val/miou"].how


# ── bits ──────────────────────────────────────────────────────────────────────────────────────────────────────


def bits(run: Run) -> list[str]:
    files = run.record.files
    return [files[name] for name in sorted(files) if name.startswith(("checkpoints", "predictions", "snapshots", "inside"))]


def test_equal_bits_for_any_number_of_workers_and_with_or_without_store(masked_run: Path, tmp_path: Path) -> None:
    recipe = recipes.loads(SMALL + "inside: {samples: 4}\n")
    for i, changes in enumerate([["data.workers=0"], ["data.workers=1", "data.store.limit_gb=0"]]):
        again = train(recipes.override(recipe, changes), out=tmp_path / str(i), quiet=True, figures=False)
        assert bits(again) == bits(Run(masked_run))


def test_an_interrupted_run_resumes_to_the_same_bits(masked_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pellucid.loop as loop

    real, taken = loop.take_step, 0

    def interrupted(*arguments: object) -> None:
        nonlocal taken
        taken += 1
        real(*arguments)  # type: ignore[arg-type]
        if taken == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop, "take_step", interrupted)
    with pytest.raises(InterruptedError):
        train(recipes.loads(SMALL + "inside: {samples: 4}\n"), out=tmp_path / "run", quiet=True)
    assert bits(resume(tmp_path / "run", quiet=True, figures=False)) == bits(Run(masked_run))


@pytest.mark.proof
def test_a_killed_run_resumes_to_the_same_bits(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(SMALL.replace("train: 40", "train: 200") + "inside: {samples: 4}\n")
    whole = train(tmp_path / "r.yaml", out=tmp_path / "whole", quiet=True, figures=False)
    command = [sys.executable, "-m", "pellucid", "train", "r.yaml", "-q", "--out", "killed", "-s", "train.checkpoint_seconds=0"]
    process = subprocess.Popen(command, cwd=tmp_path)
    for _ in range(600):
        if list((tmp_path / "killed" / "checkpoints").glob("step-*")):
            break
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert Run(tmp_path / "killed").record.status == "running"
    assert bits(resume(tmp_path / "killed", quiet=True, figures=False)) == bits(whole)


# ── a run as its user sees it ─────────────────────────────────────────────────────────────────────────────────


def test_a_run_verifies_bit_equal_and_a_changed_mask_is_named(masked_run: Path, tmp_path: Path) -> None:
    import shutil

    from pellucid.verify import verify

    found = verify(Run(masked_run))
    assert found.ok, [line for line in found.lines() if "MISMATCH" in line]
    assert found.promise == "bit-equal"
    copied = Path(shutil.copytree(masked_run, tmp_path / "copied"))
    mask = Run(copied).masks_folder("val") / "scenes-val-000003.png"
    pixels = np.asarray(Image.open(mask)).copy()
    pixels[4:9, 4:9] = 6 - pixels[4:9, 4:9]
    Image.fromarray(pixels).save(mask)
    told = verify(Run(copied))
    assert not told.ok
    assert any("scenes-val-000003.png" in line and "MISMATCH" in line for line in told.lines())


def test_a_run_predicts_masks_that_read_back_equal(masked_run: Path, tmp_path: Path) -> None:
    run = Run(masked_run)
    Image.fromarray(draw(0, split="val", image_size=(32, 32)).image).save(tmp_path / "a.png")
    (found,) = run.predict(tmp_path / "a.png")
    assert run.data.mask_format is not None
    np.testing.assert_array_equal(run.data.mask_format.read(found.data, "a"), found.mask)
    kept = np.asarray(Image.open(run.masks_folder("val") / "scenes-val-000000.png"))
    np.testing.assert_array_equal(found.mask, kept)
    assert sum(found.shares.values()) == pytest.approx(1.0)
    assert found.confidence.min() >= 1 / 7


def test_snapshots_hold_the_masks_of_their_epochs(masked_run: Path) -> None:
    run = Run(masked_run)
    assert run.snapshot_epochs == [1, 2]
    last = run.snapshot(2)
    from pellucid.mask_findings import load_mask_findings

    findings = load_mask_findings(run.inside)
    picture = findings.pictures[0]
    row = run.mask_predictions("val").files.index(picture.file)
    np.testing.assert_array_equal(last.masks["confusion/0"], run.mask_predictions("val").confusion[row])
    confusion = last.masks["confusion/0"]
    accuracy = picture.epochs[-1].pixel_accuracy
    assert accuracy is not None
    assert accuracy.value == pytest.approx(np.trace(confusion[:-1]) / confusion[:-1].sum())
    assert last.maps["grad_cam"].shape[0] == 4


def test_keep_best_watches_miou_and_the_report_is_written(tmp_path: Path) -> None:
    run = train(recipes.override(recipes.loads(SMALL), ["train.keep=best", "train.early_stop={patience: 1}"]), out=tmp_path / "run", quiet=True)
    assert "the best miou on val" in run.record.selected
    assert run.report_file.is_file()
    assert not [note for note in run.record.notes if "could not be written" in note]
    assert load_model(run)(torch.zeros(1, 3, 32, 32)).shape == (1, 7, 32, 32)


# ── where the model looked for a class ────────────────────────────────────────────────────────────────────────


def test_the_score_of_a_class_is_the_mean_logit_of_its_pixels() -> None:
    images = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    images[1, 2] = -1.0  # nobody predicts the third class in the second image
    logits = Fixed()(images)
    predicted, found = logits.argmax(1), PixelScores(Fixed())(images)
    for b in range(2):
        for c in range(3):
            own = predicted[b] == c
            expected = logits[b, c][own].mean() if own.any() else logits[b, c].mean()
            assert float(found[b, c]) == pytest.approx(float(expected), abs=1e-6)
    assert not (predicted[1] == 2).any()


@pytest.mark.parametrize(
    ("name", "encoder", "options", "grid"),
    [
        ("smp/Unet", "tu-test_resnet", {"encoder_depth": 4, "decoder_channels": [16, 8, 8, 8]}, (4, 4)),
        ("smp/DeepLabV3Plus", "tu-mobilenetv1_100", {"channel_multiplier": 0.25, "pad_type": "same"}, (4, 4)),
        ("smp/FPN", "resnet18", {}, (2, 2)),
        ("torchvision/lraspp_mobilenet_v3_large", None, {}, (4, 4)),
        ("pellucid/fcn32s", None, {"channels": 8}, (4, 4)),  # conv5, before the last pooling
    ],
)
def test_grad_cam_reads_the_end_of_the_backbone(name: str, encoder: str | None, options: dict[str, Any], grid: tuple[int, int]) -> None:
    torch.manual_seed(0)
    built = build_segmenter(name, num_classes=3, pretrained=False, encoder=encoder, options=options, image_size=(64, 64))
    scorer = PixelScores(built.module).eval()
    with torch.no_grad():
        for parameter in built.module.parameters():  # FCN's scores start at zero, which has no gradient
            if not parameter.any():
                parameter.normal_(std=0.05)
    image = torch.randn(1, 3, 64, 64)
    layer = backbone_layer(scorer, image, built.backbone)
    assert layer is not None
    assert f"{layer}.".startswith(f"segmenter.{built.backbone}.")
    assert grad_cam(scorer, image, layer=layer).values.shape[1:] == grid


def test_a_run_can_be_looked_into_with_new_photographs(masked_run: Path, tmp_path: Path) -> None:
    from pellucid.look import look_into

    picture = tmp_path / "new.png"
    Image.fromarray(draw(77, split="val", image_size=(32, 32)).image).save(picture)
    found = look_into(masked_run, [picture], tmp_path / "out", deletion=False)
    (kind,) = found.maps
    assert kind.method == "grad_cam"
    assert kind.layer.startswith("segmenter.encoder.")
    assert found.images[0].prediction is None
    assert any("Seg-Grad-CAM" in note for note in found.notes)
    star = look_into(masked_run, [picture], tmp_path / "star", explained="star", deletion=False)
    assert star.images[0].label == "star"
    with pytest.raises(UsageError, match="--class: the run has no class 'stra'. Did you mean 'star'"):
        look_into(masked_run, [picture], tmp_path / "no", explained="stra")


def test_a_picture_without_a_pixel_that_counts_has_no_number(tmp_path: Path) -> None:
    drawn_pairs(tmp_path / "d" / "train", 8, sizes=((32, 32),), void=False)
    drawn_pairs(tmp_path / "d" / "val", 3, sizes=((32, 32),), void=False)
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(tmp_path / "d" / "val_masks" / "001.png")
    classes = "classes=[unknown, circle, square, triangle, star, cross, ring]"
    text = pairs_recipe(tmp_path / "d", extra="scoring: {convention: deepglobe}\ninside: {samples: 3}\n")
    run = train(recipes.override(recipes.loads(text), [f"data.{classes}", "data.ignored=[]"]), out=tmp_path / "run", quiet=True, figures=False)
    from pellucid.mask_findings import load_mask_findings

    numbers = {picture.file: picture.epochs[-1] for picture in load_mask_findings(run.inside).pictures}
    assert numbers["001.png"].pixel_accuracy is None
    assert numbers["000.png"].pixel_accuracy is not None
    assert run.report_file.is_file()


# ── bad input ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("data.source=digits", "segmentation needs a mask for each image: pairs or scenes; digits has none"),
        ("model={name: timm/test_vit}", "segmentation takes pellucid/<name>, torchvision/<name>, smp/<name>"),
        ("augment.mixup=0.2", "mixup mixes labels of images and belongs to classification"),
        ("train.early_stop={patience: 2, metric: accuracy}", "segmentation has no accuracy"),
        ("inside={features: 10}", "features belongs to classification"),
        ("inside={masks: here}", "masks belongs to classification"),
        ("loss={name: sum}", "sum needs terms"),
        ("model.drop_rate=0.1", "give dropout in options"),
        ("loss={name: cross_entropy, epsilon: 3.0}", "epsilon 3 would do nothing: it belongs to poly1 and poly1_focal, not to cross_entropy"),
        ("loss={name: sum, gamma: 3.0, terms: [{name: focal}]}", "gamma 3 would do nothing: it belongs to its terms, not to sum"),
        ("loss.auxiliary_weight=0.4", "auxiliary_weight 0.4 would do nothing"),
    ],
)
def test_a_recipe_that_does_not_fit_segmentation_says_what_would(change: str, said: str) -> None:
    with pytest.raises(RecipeError, match="(?s).*") as told:
        recipes.override(recipes.loads(SMALL), [change])
    assert said in str(told.value)


def test_classes_and_weights_that_do_not_exist_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="inside.classes: the data has no class 'rign'. Did you mean 'ring'"):
        train(recipes.override(recipes.loads(SMALL), ["inside={classes: [rign]}"]), out=tmp_path / "a", quiet=True)
    with pytest.raises(DataError, match="class_weights has 3 numbers, the data has 7 classes"):
        train(recipes.override(recipes.loads(SMALL), ["loss.class_weights=[1, 1, 1]"]), out=tmp_path / "b", quiet=True)
    with pytest.raises(UsageError, match="class weights are for"):
        train(recipes.override(recipes.loads(SMALL), ["loss={name: dice, class_weights: balanced}"]), out=tmp_path / "c", quiet=True)
