"""Linear classifiers on a frozen backbone: features computed once beside the backbone in every epoch, ours and as it is written by hand.

Settings D and E of a transfer study on 17 flowers: MobileNet v1 of width 0.25 at 96 pixels, D with published ImageNet weights, E with the backbone file of
a pre-training of one's own (`--own FILE`); without one a backbone of random weights stands in, which costs the same. Three ways train each of them:

- cached: Pellucid with model.cached_views: 1;
- every epoch: Pellucid with model.cached_views: 0, which runs the frozen backbone in each epoch on images that were decoded once;
- by hand: a torchvision Dataset that opens the JPEGs with Pillow, the frozen backbone in eval mode under no_grad, a linear layer with the same optimiser.

They take turns, each training in a process of its own with one thread. The first round is of `--epochs` epochs for all, and gives the accuracies; in later
rounds only the cached way is whole, the others train `--timed` epochs for their rate. Seconds are those of the whole call, with reading, checking and
decoding the data, evaluations after every epoch and, of Pellucid, the report; Pellucid's cache of decoded images is empty at the start of each training.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from timm.models import efficientnet
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from peers import machine, markdown_table
from pellucid import intervals
from pellucid import recipe as recipes
from pellucid.recipe import Recipe
from photographs import EVALUATION_BATCH, RECIPES, Photographs, in_a_process, plain_samples, plain_schedule

CACHED, WHOLE, BY_HAND = "cached", "every epoch", "by hand"
PUBLISHED, OWN, RANDOM = "D, published backbone", "E, own backbone", "random backbone in the place of E"
SETTINGS = [
    "augment={}", "model.freeze=backbone", "train.batch_size=128", "train.threads=1", "train.channels_last=false", "data.workers=0",
]  # fmt: skip


@dataclass(frozen=True)
class Timed:
    """One training: seconds of the call by the wall and of the processor, its epochs, and whether each image of val was right, in the order of names."""

    seconds: float
    cpu: float
    epochs: int
    right: tuple[bool, ...]

    def per_epoch(self, kind: str) -> float:
        """Seconds of an epoch, everything spread over them. kind: seconds (wall) or cpu."""
        return float(getattr(self, kind)) / self.epochs


def recipe_of(weights: Path | None, epochs: int, overrides: Sequence[str]) -> Recipe:
    """The recipe of the flowers, with a frozen backbone: that of its weights file, or of another."""
    other = [f"model.weights={weights.resolve()}"] if weights is not None else []
    return recipes.load(RECIPES / "flowers-mobilenet.yaml", [*SETTINGS, f"train.phases.0.epochs={epochs}", *other, *overrides])


def pellucid_run(weights: Path | None, epochs: int, overrides: Sequence[str], cached: bool) -> Timed:
    """Train with Pellucid, with a cache of decoded images that is empty at the start."""
    from pellucid.train import train

    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        recipe = recipe_of(weights, epochs, [f"model.cached_views={int(cached)}", *overrides])
        began, spent = time.perf_counter(), time.process_time()
        run = train(recipe, out=Path(folder) / "run", quiet=True, figures=False)
        seconds, cpu = time.perf_counter() - began, time.process_time() - spent
        found = run.predictions("val")
        right = found.logits.argmax(1) == found.labels
        return Timed(seconds, cpu, epochs, by_name([Path(file).name for file in found.files], right.tolist()))


def by_hand(weights: Path | None, epochs: int, overrides: Sequence[str]) -> Timed:
    """Train with torch, torchvision and timm alone; only the values of the recipe are Pellucid's."""
    recipe = recipe_of(weights, epochs, overrides)
    mean, std = normalization(Path(str(recipe.model.weights)))
    torch.set_flush_denormal(True)
    torch.set_num_threads(1)
    torch.manual_seed(recipe.seed)
    (phase,) = recipe.train.phases
    began, spent = time.perf_counter(), time.process_time()
    module = backbone(recipe)
    train, val = loaders(recipe, mean, std)
    optimizer = torch.optim.AdamW(module.classifier.parameters(), lr=phase.optimizer.lr, weight_decay=phase.optimizer.weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, plain_schedule(recipe, len(train)))
    right: list[bool] = []
    for _ in range(epochs):
        for x, y in train:
            with torch.no_grad():
                features = module.forward_head(module.forward_features(x), pre_logits=True)
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(module.classifier(features), y).backward()
            optimizer.step()
            schedule.step()
        with torch.inference_mode():
            right = [bool(hit) for x, y in val for hit in module(x).argmax(1) == y]
    seconds, cpu = time.perf_counter() - began, time.process_time() - spent
    return Timed(seconds, cpu, epochs, by_name([path.name for path, _ in plain_samples(recipe, "val")[0]], right))


def by_name(names: Sequence[str], right: Sequence[bool]) -> tuple[bool, ...]:
    return tuple(hit for _, hit in sorted(zip(names, right, strict=True)))


def normalization(weights: Path) -> tuple[Sequence[float], Sequence[float]]:
    """(mean, std) of pixels in [0, 1]: what a backbone file states, else the model's own."""
    from pellucid.models.backbone_file import read_facts

    facts = read_facts(weights)
    return (facts.mean, facts.std) if facts is not None else ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def network(recipe: Recipe, num_classes: int) -> Any:
    """timm's MobileNet v1 of the recipe's width."""
    return efficientnet._gen_mobilenet_v1("mobilenetv1_100", num_classes=num_classes, **recipe.model.options)


def backbone(recipe: Recipe) -> Any:
    """The network in eval mode with the weights of the recipe's file, all but a new classifier frozen."""
    module = network(recipe, plain_samples(recipe, "train")[1])
    file = Path(str(recipe.model.weights))
    state = safetensors.torch.load_file(file) if file.suffix == ".safetensors" else torch.load(file, weights_only=True)
    missing = module.load_state_dict({name: tensor for name, tensor in state.items() if not name.startswith("classifier.")}, strict=False).missing_keys
    unknown = [name for name in missing if not name.startswith("classifier.") and not name.endswith("num_batches_tracked")]
    if unknown:
        raise SystemExit(f"{file} lacks {', '.join(unknown)}")
    module.eval().requires_grad_(False)
    module.classifier.requires_grad_(True)
    return module


def loaders(recipe: Recipe, mean: Sequence[float], std: Sequence[float]) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Shuffled training batches and validation batches in order, decoded with Pillow each time."""
    steps = [v2.Resize(recipe.data.size[0]), v2.CenterCrop(recipe.data.size), v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
    train, val = (Photographs(plain_samples(recipe, split)[0], v2.Compose(steps)) for split in ("train", "val"))
    order = torch.Generator().manual_seed(recipe.seed)
    return DataLoader(train, batch_size=recipe.train.batch_size, shuffle=True, generator=order), DataLoader(val, batch_size=EVALUATION_BATCH)


def random_weights(recipe: Recipe, file: Path) -> Path:
    """A file of the network's random initial weights, the same for all."""
    torch.manual_seed(0)
    module: nn.Module = network(recipe, 17)
    torch.save({name: tensor for name, tensor in module.state_dict().items() if not name.startswith("classifier.")}, file)
    return file


# ── what is printed ───────────────────────────────────────────────────────────────────────────────────────────


def accuracy_cell(right: Sequence[bool]) -> str:
    found = intervals.wilson(sum(right), len(right))
    return f"{sum(right) / len(right):.3f} ({found.low:.3f} to {found.high:.3f})"


def rows(setting: str, found: dict[str, list[Timed]]) -> list[list[str]]:
    """A row for each way: what an epoch takes in each of its trainings, whole trainings, the accuracy of the first, and the cached way beside it."""
    first, table = found[CACHED][0], []
    for way, trainings in found.items():
        whole = [timed for timed in trainings if timed.epochs == first.epochs]
        each = [", ".join(f"{1000 * timed.per_epoch(kind):.1f}" for timed in trainings) for kind in ("seconds", "cpu")]
        cells = [setting, way, *each, ", ".join(f"{timed.seconds:.1f}" for timed in whole), accuracy_cell(whole[0].right)]
        if way == CACHED:
            table.append([*cells, "", ""])
            continue
        difference, between = (sum(first.right) - sum(whole[0].right)) / len(first.right), intervals.paired(first.right, whole[0].right)
        table.append([*cells, times(trainings, found[CACHED]), f"{difference:+.3f} ({between.low:+.3f} to {between.high:+.3f})"])
    return table


def times(slow: Sequence[Timed], fast: Sequence[Timed]) -> str:
    """How many times as long an epoch takes, by the wall and of the processor: ratio of the medians."""
    wall, cpu = (statistics.median(one.per_epoch(kind) for one in slow) / statistics.median(one.per_epoch(kind) for one in fast) for kind in ("seconds", "cpu"))
    return f"{wall:.1f}, {cpu:.1f}"


HEADER = [
    "setting", "way", "ms of an epoch, each training", "ms of the processor", "seconds, whole trainings", "accuracy on val (95 % Wilson)",
    "cached is faster by (wall, processor)", "cached minus this (95 % paired)",
]  # fmt: skip


def bench(weights: dict[str, Path | None], epochs: int, timed: int, rounds: int, overrides: Sequence[str]) -> list[list[str]]:
    """The table; the ways take turns in each round."""
    ways: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
        CACHED: (pellucid_run, (True,)), WHOLE: (pellucid_run, (False,)), BY_HAND: (by_hand, ()),
    }  # fmt: skip
    table = []
    for setting, file in weights.items():
        found: dict[str, list[Timed]] = {way: [] for way in ways}
        for number in range(rounds):
            for way, (function, more) in ways.items():
                count = epochs if number == 0 or way == CACHED else timed
                one: Any = in_a_process(function, file, count, list(overrides), *more)
                found[way].append(one)
                print(f"{setting}, {way}: {count} epochs in {one.seconds:.1f} s, accuracy {np.mean(one.right):.3f}", file=sys.stderr, flush=True)
        table += rows(setting, found)
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description="A frozen backbone computed once, beside one that runs in every epoch.")
    parser.add_argument("--own", type=Path, default=None, help="backbone file of a pre-training (`pellucid export RUN --backbone`)")
    parser.add_argument("--epochs", type=int, default=150, help="of a whole training (default: %(default)s)")
    parser.add_argument("--timed", type=int, default=10, help="epochs of the slower ways after the first round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="how often the ways take turns (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="two epochs of small images, D alone: does the bench work")
    given = parser.parse_args()
    epochs, timed, overrides = (2, 2, ["data.image_size=32", "train.phases.0.schedule.warmup_epochs=0"]) if given.quick else (given.epochs, given.timed, [])
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes to come
    with tempfile.TemporaryDirectory() as folder:
        weights: dict[str, Path | None] = {PUBLISHED: None}
        if given.own is not None:
            weights[OWN] = given.own
        elif not given.quick:
            weights[RANDOM] = random_weights(recipe_of(None, epochs, overrides), Path(folder) / "random.pth")
        table = bench(weights, epochs, timed, 1 if given.quick else given.rounds, overrides)
    print(f"{machine()}; one thread; {epochs} epochs in whole trainings\n\n{markdown_table(HEADER, table)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
