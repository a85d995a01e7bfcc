"""The parts of a segmentation step and of its evaluation, one thread, beside torch, segmentation_models_pytorch and torchmetrics in the same run.

In each round every variant takes its turn (A, B, A, B ...); ratios are of the medians. Losses: forward and backward on random logits with a sixteenth
of the pixels ignored, after a check that both sides give the same number where they define the same thing.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from peers import machine, markdown_table

IGNORED = 255
SHAPES = {"CamVid": (8, 11, 180, 240), "512 px, 21 classes": (4, 21, 512, 512)}
Timed = Callable[[], object]


def batch(shape: tuple[int, int, int, int]) -> tuple[Tensor, Tensor]:
    """(logits, masks) of a shape (B, C, H, W); a stripe of each mask is ignored."""
    torch.manual_seed(0)
    B, C, H, W = shape
    masks = torch.randint(0, C, (B, H, W))
    masks[:, : H // 16] = IGNORED
    return torch.randn(shape).requires_grad_(), masks


def ours(name: str, logits: Tensor, masks: Tensor) -> Callable[[], Tensor]:
    from pellucid.pixel_losses import Term, pixel_loss, window_weights

    terms = [Term(name)]

    def loss() -> Tensor:
        weights = window_weights(masks, terms, ignored=IGNORED, class_weights=None)
        return pixel_loss(logits, masks, terms, ignored=IGNORED, class_weights=None, label_smoothing=0.0, weights=weights) / weights.total

    return loss


def losses(shape: tuple[int, int, int, int]) -> dict[str, Callable[[], Tensor]]:
    """{what: mean loss} of one batch: Pellucid's, and what others have of the same name."""
    from segmentation_models_pytorch import losses as smp

    logits, masks = batch(shape)
    lovasz = smp.LovaszLoss("multiclass", per_image=True, ignore_index=IGNORED)
    dice = smp.DiceLoss("multiclass", ignore_index=IGNORED)  # its focal loss is of one class against the rest: another number
    found = {name: ours(name, logits, masks) for name in ("cross_entropy", "poly1", "focal", "dice", "lovasz")}
    return {
        "torch cross_entropy": lambda: F.cross_entropy(logits, masks, ignore_index=IGNORED),
        "cross_entropy": found["cross_entropy"], "poly1": found["poly1"], "focal": found["focal"],
        "dice, of each image": found["dice"], "smp dice, of the batch": lambda: dice(logits, masks),
        "lovasz": found["lovasz"], "smp lovasz": lambda: lovasz(logits, masks),
    }  # fmt: skip


def agree(found: dict[str, Callable[[], Tensor]]) -> None:
    """AssertionError where two sides that define the same number differ."""
    for a, b in (("torch cross_entropy", "cross_entropy"), ("smp lovasz", "lovasz")):
        assert abs(float(found[a]().detach()) - float(found[b]().detach())) < 1e-4, f"{a} and {b} are not the same number"


def backward(loss: Callable[[], Tensor]) -> Timed:
    def run() -> None:
        loss().backward()  # type: ignore[no-untyped-call]

    return run


def scores(shape: tuple[int, int, int, int]) -> dict[str, Timed]:
    """{what: call} of the evaluation of one image."""
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    from pellucid.overlap import boundary_counts, boundary_tolerance, pixel_confusion
    from pellucid.tasks.segmentation import _right

    logits, masks = batch(shape)
    logits = logits.detach()
    C, (H, W) = shape[1], shape[2:]
    coarse = np.kron(np.random.default_rng(0).integers(0, C, (-(-H // 12), -(-W // 12))), np.ones((12, 12)))[:H, :W].astype(np.uint8)
    moved = np.roll(coarse, (2, 3), (0, 1))
    truth, predicted = torch.from_numpy(coarse).long(), torch.from_numpy(moved).long()
    tolerance = boundary_tolerance(0.0075, H, W)
    return {
        "argmax == mask, of the batch": lambda: torch.count_nonzero(logits.argmax(1) == masks),
        "right pixels, class by class": lambda: _right(logits, masks),
        "torchmetrics confusion of an image": lambda: multiclass_confusion_matrix(predicted, truth, C, ignore_index=IGNORED),
        "pixel_confusion": lambda: pixel_confusion(coarse, moved, C),
        "boundary_counts": lambda: boundary_counts(coarse, moved, C, tolerance),
    }


def times(calls: dict[str, Timed], rounds: int) -> dict[str, float]:
    """{what: median seconds}, each in its turn in every round; the first round is not counted."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if number:
                found[name].append(time.perf_counter() - began)
    return {name: median(seconds) for name, seconds in found.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description="Losses and scores of masks beside other libraries.")
    parser.add_argument("--rounds", type=int, default=15, help="turns of each variant (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{machine()}; one thread, medians of {options.rounds} turns\n")
    for title, shape in SHAPES.items():
        found = losses(shape)
        agree(found)
        seconds = times({name: backward(loss) for name, loss in found.items()}, options.rounds)
        base = seconds["torch cross_entropy"]
        print(f"{title}, logits {shape}: losses, forward and backward\n")
        print(markdown_table(["loss", "ms", "times torch's cross-entropy"], [[n, f"{1e3 * s:.1f}", f"{s / base:.2f}"] for n, s in seconds.items()]))
        print(f"\n{title}: scores\n")
        print(markdown_table(["what", "ms"], [[name, f"{1e3 * s:.2f}"] for name, s in times(scores(shape), options.rounds).items()]))
        print()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
