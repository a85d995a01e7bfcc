"""Seconds of an epoch of fine-tuning on photographs: Pellucid beside loops written as torchvision's and timm's training scripts are.

The scripts themselves are on no package index. `torchvision` below is its classification reference wired from its parts: ImageFolder,
the transforms of its presets, a DataLoader with workers, losses and accuracies read at each step, evaluation after each epoch. `timm` is
its train.py wired from its parts: create_dataset, create_loader with the prefetcher, create_optimizer_v2, CosineLRScheduler,
AverageMeter, accuracy. Model, weights, batch size, crop, flip, optimiser, schedule, epochs, memory format, two torch threads and two
loader workers are the same for all. Each is run as published and tuned, with what Pellucid sets and neither script does: denormal
numbers flushed, and OpenMP threads that wait asleep after a short look, without which loader processes and torch's threads get in
each other's way.

Each training has a process of its own; they take turns. Seconds are the wall time of epochs with their evaluations, without imports.
What comes before the first step is listed apart: Pellucid hashes, checks and decodes every image there, into an empty store, while the
scripts decode in each epoch. Pellucid's last column also holds the test split and the numbers and intervals of both.
What is finished in `--out` is not trained again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data import create_dataset, create_loader
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import AverageMeter, accuracy
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from pellucid import intervals
from pellucid import recipe as recipes
from pellucid.errors import PellucidError
from pellucid.recipe import Recipe
from photographs import RECIPES, machine, plain_model, plain_schedule

ROOT = Path(__file__).resolve().parent.parent
THREADS = WORKERS = 2
GOAL = 0.8
PELLUCID = "Pellucid"
WAITING = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "1000"}  # what Pellucid's command line sets; the scripts set nothing
TUNED = ", tuned"
CLOTHING = "${PELLUCID_DATA:-../../shared/data}/clothing"
MODELS = {
    "squeezenet": ("clothing-squeezenet", []),
    "mobilenet": (  # width 0.25: the model is small, so the images weigh more
        "flowers-mobilenet",
        [
            "data.source=folder", "data.image_dir=null", "data.resize_size=112",
            *(f"data.{split}={CLOTHING}/{split}" for split in ("train", "val", "test")),
        ],
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """One training. start: seconds before the first step; epochs: seconds of each with its evaluation; rest: seconds after the last."""

    start: float
    epochs: list[float]
    rest: float
    correct: dict[str, bool]  # of each val image, by its path below the split

    @property
    def accuracy(self) -> float:
        return sum(self.correct.values()) / len(self.correct)


def recipe_of(model: str, epochs: int, seed: int) -> tuple[Path, list[str]]:
    """The recipe file, and the overrides that make it the job of this bench."""
    name, changes = MODELS[model]
    settings = [f"train.phases.0.epochs={epochs}", f"seed={seed}", f"train.threads={THREADS}", f"data.workers={WORKERS}"]
    if epochs < 3:
        settings.append("train.phases.0.schedule.warmup_epochs=0.5")
    return RECIPES / f"{name}.yaml", [*changes, *settings]


# ── Pellucid ──────────────────────────────────────────────────────────────────────────────────────────────────


def pellucid(file: Path, overrides: Sequence[str], _: Recipe) -> Outcome:
    """The recipe trained with an empty store."""
    from pellucid.train import train

    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        run = train(file, overrides=[*overrides, f"data.store.directory={folder}/store"], out=Path(folder) / "run", quiet=True, figures=False)
        passed, record = time.perf_counter() - began, run.record
        lines = run.metrics()
        trained, evaluated = ([line["seconds"] for line in lines if line["kind"] == kind] for kind in ("train", "val"))
        epochs = [a + b for a, b in zip(trained, evaluated, strict=True)]
        predictions = run.predictions("val")
    correct = predictions.logits.argmax(1) == predictions.labels
    right = dict(zip(predictions.files, correct.tolist(), strict=True))
    return Outcome(passed - record.seconds, epochs, record.seconds - sum(epochs), right)


# ── torchvision's reference, from its parts ───────────────────────────────────────────────────────────────────


class SmoothedValue:
    """The last values and their mean, as a reference's metric logger keeps them: each is read from the tensor at once."""

    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def update(self, value: Tensor, n: int) -> None:
        self.total += value.item() * n
        self.count += n


def top_k(output: Tensor, target: Tensor, ks: Sequence[int]) -> list[Tensor]:
    """Share of images whose label is among the k largest logits."""
    found = output.topk(max(ks), 1).indices.eq(target[:, None])
    return [found[:, :k].any(1).float().mean() for k in ks]


def expected_crop(recipe: Recipe) -> tuple[int, int, tuple[float, float], tuple[float, float]]:
    """(side, resized short side, scale, ratio) of the recipe, for pipelines that know square crops alone."""
    side, scale, ratio = recipe.data.size[0], recipe.augment.random_resized_crop, recipe.augment.crop_ratio
    if scale is None or recipe.data.size[1] != side or recipe.data.resize_size is None:
        raise SystemExit("the bench expects random_resized_crop, a square image_size and a resize_size")
    return side, recipe.data.resize_size, (scale[0], scale[1]), (ratio[0], ratio[1])


def torchvision_loop(_: Path, __: Sequence[str], recipe: Recipe) -> Outcome:
    began = time.perf_counter()
    side, resized, scale, ratio = expected_crop(recipe)
    places = [Path(str(place)) for place in (recipe.data.train, recipe.data.val)]
    module, mean, std = placed_model(recipe, places[0])
    end = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std)), v2.ToPureTensor()]
    crop = v2.RandomResizedCrop(side, scale=scale, ratio=ratio, antialias=True)
    train = ImageFolder(places[0], v2.Compose([crop, v2.RandomHorizontalFlip(recipe.augment.horizontal_flip), *end]))
    val = ImageFolder(places[1], v2.Compose([v2.Resize(resized, antialias=True), v2.CenterCrop(side), *end]))
    batch = recipe.train.batch_size
    train_batches: Any = DataLoader(train, batch_size=batch, sampler=RandomSampler(train), num_workers=WORKERS)
    val_batches: Any = DataLoader(val, batch_size=batch, sampler=SequentialSampler(val), num_workers=WORKERS)
    (phase,) = recipe.train.phases
    settings = phase.optimizer
    optimizer = torch.optim.AdamW(module.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, betas=tuple(settings.betas), eps=settings.eps)  # type: ignore[arg-type]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, plain_schedule(recipe, len(train_batches)))
    criterion = nn.CrossEntropyLoss()
    memory_format = torch.channels_last if recipe.train.channels_last else torch.contiguous_format

    def epoch(_: int) -> list[bool]:
        module.train()
        meters = [SmoothedValue() for _ in range(3)]
        for image, target in train_batches:
            output = module(image.to(memory_format=memory_format))
            loss = criterion(output, target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            for meter, value in zip(meters, (loss, *top_k(output, target, (1, 5))), strict=True):
                meter.update(value, len(target))
            schedule.step()
        return evaluated(module, val_batches, memory_format, criterion)

    files = [str(Path(path).relative_to(places[1])) for path, _ in val.samples]
    return timed(epoch, phase.epochs, began, files)


def placed_model(recipe: Recipe, train: Path) -> tuple[nn.Module, Sequence[float], Sequence[float]]:
    """The model with its published weights in the recipe's memory format, and the mean and std that they expect."""
    module, mean, std = plain_model(recipe, sum(place.is_dir() for place in train.iterdir()))
    if recipe.train.channels_last:
        module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return module, mean, std


@torch.inference_mode()
def evaluated(module: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], memory_format: torch.memory_format, criterion: nn.Module) -> list[bool]:
    """Which images of a split are right; the loss and both accuracies are kept as the scripts do."""
    module.eval()
    meters, correct = [SmoothedValue() for _ in range(3)], []
    for image, target in batches:
        output = module(image.to(memory_format=memory_format))
        for meter, value in zip(meters, (criterion(output, target), *top_k(output, target, (1, 5))), strict=True):
            meter.update(value, len(target))
        correct += (output.argmax(1) == target).tolist()
    return correct


def timed(epoch: Callable[[int], list[bool]], epochs: int, began: float, files: Sequence[str]) -> Outcome:
    """Run the epochs; `began` is when the loop was set up."""
    start, seconds, correct = time.perf_counter() - began, [], []
    for index in range(epochs):
        before = time.perf_counter()
        correct = epoch(index)
        seconds.append(time.perf_counter() - before)
    return Outcome(start, seconds, 0.0, dict(zip(files, correct, strict=True)))


# ── timm's train.py, from its parts ───────────────────────────────────────────────────────────────────────────


def timm_loop(_: Path, __: Sequence[str], recipe: Recipe) -> Outcome:
    began = time.perf_counter()
    module, mean, std = placed_model(recipe, Path(str(recipe.data.train)))
    (phase,) = recipe.train.phases
    settings = phase.optimizer
    train_batches, val_batches = timm_loaders(recipe, mean, std)
    optimizer = create_optimizer_v2(
        module, opt="adamw", lr=settings.lr, weight_decay=settings.weight_decay, betas=tuple(settings.betas), eps=settings.eps,
        filter_bias_and_bn=settings.exclude_norm_bias,
    )  # fmt: skip
    updates = len(train_batches)
    warmup = round(phase.schedule.warmup_epochs * updates)
    schedule = CosineLRScheduler(optimizer, t_initial=phase.epochs * updates, warmup_t=warmup, warmup_lr_init=settings.lr / max(1, warmup), t_in_epochs=False)
    criterion = nn.CrossEntropyLoss()
    memory_format = torch.channels_last if recipe.train.channels_last else torch.contiguous_format

    def epoch(index: int) -> list[bool]:
        module.train()
        losses = AverageMeter()
        for step, (image, target) in enumerate(train_batches):
            output = module(image.contiguous(memory_format=memory_format))
            loss = criterion(output, target)
            optimizer.zero_grad()
            loss.backward()
            losses.update(loss.item(), image.size(0))
            optimizer.step()
            schedule.step_update(num_updates=index * updates + step + 1, metric=losses.avg)
        return timm_evaluated(module, val_batches, memory_format, criterion)

    return timed(epoch, phase.epochs, began, val_batches.dataset.filenames())


def timm_loaders(recipe: Recipe, mean: Sequence[float], std: Sequence[float]) -> tuple[Any, Any]:
    side, resized, scale, ratio = expected_crop(recipe)
    shared: dict[str, Any] = {
        "input_size": (3, side, side), "batch_size": recipe.train.batch_size, "use_prefetcher": True, "interpolation": "bilinear", "mean": tuple(mean),
        "std": tuple(std), "num_workers": WORKERS, "device": torch.device("cpu"),
    }  # fmt: skip
    train = create_dataset("", root=str(recipe.data.train), split="train", search_split=False, is_training=True)
    val = create_dataset("", root=str(recipe.data.val), split="validation", search_split=False)
    augment: dict[str, Any] = {"scale": scale, "ratio": ratio, "hflip": recipe.augment.horizontal_flip, "color_jitter": None}
    return create_loader(train, is_training=True, **augment, **shared), create_loader(val, is_training=False, crop_pct=side / resized, **shared)


@torch.inference_mode()
def timm_evaluated(module: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], memory_format: torch.memory_format, criterion: nn.Module) -> list[bool]:
    module.eval()
    losses, first, five, correct = AverageMeter(), AverageMeter(), AverageMeter(), []
    for image, target in batches:
        output = module(image.contiguous(memory_format=memory_format))
        loss = criterion(output, target)
        top1, top5 = accuracy(output, target, topk=(1, 5))
        losses.update(loss.item(), image.size(0))
        first.update(top1.item(), output.size(0))
        five.update(top5.item(), output.size(0))
        correct += (output.argmax(1) == target).tolist()
    return correct


# ── turns, each in a process of its own ───────────────────────────────────────────────────────────────────────

LOOPS: dict[str, Callable[[Path, Sequence[str], Recipe], Outcome]] = {PELLUCID: pellucid, "torchvision": torchvision_loop, "timm": timm_loop}
CONTENDERS = [PELLUCID, *(loop + flush for loop in ("torchvision", "timm") for flush in ("", TUNED))]


def one(contender: str, model: str, epochs: int, seed: int) -> Outcome:
    """Train here and now."""
    file, overrides = recipe_of(model, epochs, seed)
    recipe = recipes.load(file, overrides)
    torch.set_num_threads(THREADS)
    torch.manual_seed(seed)
    if contender.endswith(TUNED):
        torch.set_flush_denormal(True)
    return LOOPS[contender.removesuffix(TUNED)](file, overrides, recipe)


def environment(contender: str) -> dict[str, str]:
    """How OpenMP's threads wait: as the command line of Pellucid sets it, and as a user's shell leaves it for a script as published."""
    plain = {name: value for name, value in os.environ.items() if name not in WAITING}
    return plain | (WAITING if contender == PELLUCID or contender.endswith(TUNED) else {})


def turns(contenders: Sequence[str], model: str, epochs: int, seeds: int, out: Path) -> Iterator[tuple[str, int, Outcome]]:
    """(contender, seed, outcome) of all trainings; the contenders take turns, seed by seed. What the same code and versions gave before is used again."""
    digest = hashlib.blake2b(machine().encode(), digest_size=8)
    for file in sorted([*ROOT.glob("src/pellucid/**/*.py"), *ROOT.glob("recipes/*.yaml"), Path(__file__)]):
        digest.update(file.read_bytes())
    code = digest.hexdigest()
    for seed in range(1, seeds + 1):
        for contender in contenders:
            result = out / code / f"{model}-{epochs}-{contender.replace(', ', '-').replace(' ', '-')}-{seed}.json"
            if not result.exists():
                options = {"--one": contender, "--model": model, "--epochs": epochs, "--seed": seed, "--result": result}
                command = [sys.executable, __file__, *(str(word) for option in options.items() for word in option)]
                if subprocess.run(command, check=False, env=environment(contender)).returncode:
                    raise SystemExit(f"{contender} failed; what it said stands above")
            outcome = Outcome(**json.loads(result.read_text(encoding="utf-8")))
            print(f"{model}, {contender}, seed {seed}: {outcome.epochs[0]:.1f} s, accuracy {outcome.accuracy:.4f}", file=sys.stderr, flush=True)
            yield contender, seed, outcome


def keep(outcome: Outcome, result: Path) -> None:
    result.parent.mkdir(parents=True, exist_ok=True)
    temporary = result.with_suffix(".partial")
    temporary.write_text(json.dumps(asdict(outcome)), encoding="utf-8")
    temporary.replace(result)


# ── what is printed ───────────────────────────────────────────────────────────────────────────────────────────


def seconds_rows(found: dict[str, list[Outcome]]) -> list[str]:
    """A line for each contender: seconds of an epoch, and the ratio of ours to it, turn by turn."""
    rows = [
        "| loop | s an epoch, median (smallest to largest) | n | Pellucid's share of it | before the first step, s | share with that | after the last, s |",
        "|---|---|---|---|---|---|---|",
    ]
    ours = [statistics.median(outcome.epochs) for outcome in found[PELLUCID]]
    for contender, outcomes in found.items():
        seconds = [second for outcome in outcomes for second in outcome.epochs]
        shares = [a / statistics.median(outcome.epochs) for a, outcome in zip(ours, outcomes, strict=True)]
        share = "" if contender == PELLUCID else f"{statistics.median(shares):.2f} ({min(shares):.2f} to {max(shares):.2f})"
        start, rest = (statistics.median(getattr(outcome, name) for outcome in outcomes) for name in ("start", "rest"))
        spread = f"{statistics.median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})"
        whole = statistics.median((a.start + sum(a.epochs)) / (b.start + sum(b.epochs)) for a, b in zip(found[PELLUCID], outcomes, strict=True))
        with_start = "" if contender == PELLUCID else f"{whole:.2f}"
        rows.append(f"| {contender} | {spread} | {len(seconds)} | {share} | {start:.1f} | {with_start} | {rest:.1f} |")
    return rows


def accuracy_rows(found: dict[str, list[Outcome]]) -> list[str]:
    """A line for each contender: accuracy on val, and the difference of ours with its intervals."""
    rows = [
        "| loop | accuracy on val, mean of seeds | seed 1, Wilson interval | Pellucid - loop, Welch interval over seeds | seed 1, paired over images |",
        "|---|---|---|---|---|",
    ]
    ours = found[PELLUCID]
    for contender, outcomes in found.items():
        first, accuracies = outcomes[0].correct, [outcome.accuracy for outcome in outcomes]
        wilson = intervals.wilson(sum(first.values()), len(first))
        over_seeds = over_images = ""
        if contender != PELLUCID:
            files = sorted(ours[0].correct)
            if files != sorted(first):
                raise SystemExit(f"{contender} evaluated other images than {PELLUCID}")
            paired = intervals.paired(np.array([ours[0].correct[file] for file in files]), np.array([first[file] for file in files]))
            over_images = f"{ours[0].accuracy - outcomes[0].accuracy:+.4f}, {paired.low:+.4f} to {paired.high:+.4f}"
            difference = statistics.fmean(outcome.accuracy for outcome in ours) - statistics.fmean(accuracies)
            over_seeds = f"{difference:+.4f}, one seed"
            if len(accuracies) > 1:
                welch = intervals.welch([outcome.accuracy for outcome in ours], accuracies)
                over_seeds = f"{difference:+.4f}, {welch.low:+.4f} to {welch.high:+.4f}"
        interval = f"{outcomes[0].accuracy:.4f}, {wilson.low:.4f} to {wilson.high:.4f}"
        rows.append(f"| {contender} | {statistics.fmean(accuracies):.4f} | {interval} | {over_seeds} | {over_images} |")
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description="Seconds of an epoch of fine-tuning: Pellucid beside torchvision's and timm's scripts.")
    parser.add_argument("--model", choices=list(MODELS), default="squeezenet", help="which network (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=1, help="epochs of each training (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each loop, seeds from 1 (default: %(default)s)")
    parser.add_argument("--loops", default=",".join(LOOPS), help="which loops, by comma (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs") / "bench-epoch", help="where results stay (default: %(default)s)")
    parser.add_argument("--one", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    try:
        if given.one is not None:
            keep(one(given.one, given.model, given.epochs, given.seed), given.result)
            return 0
        chosen = given.loops.split(",")
        found: dict[str, list[Outcome]] = {name: [] for name in CONTENDERS if name.removesuffix(TUNED) in {PELLUCID, *chosen}}
        with suppress(KeyboardInterrupt):  # what is finished is still worth its table
            for contender, _, outcome in turns(list(found), given.model, given.epochs, given.seeds, given.out):
                found[contender].append(outcome)
    except PellucidError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    whole = min(len(outcomes) for outcomes in found.values())
    if not whole:
        return 130
    complete = {contender: outcomes[:whole] for contender, outcomes in found.items()}
    print(f"{machine()}; {THREADS} torch threads, {WORKERS} workers; {given.model} on clothing, {given.epochs} epoch(s)\n")
    print("\n".join([*seconds_rows(complete), "", *accuracy_rows(complete)]))
    print(f"\nGoal: Pellucid's share at most {GOAL} of a script as published.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
