"""Pellucid beside a plain torchvision loop on real photographs: accuracies over seeds, their differences, and seconds.

For each of three sets (class folders, class in the file name, labels in a table) and each seed it trains Pellucid's recipe from
published weights, the same recipe from random weights, and `plain_run`: what a torchvision user writes by hand, with the settings of
the recipe. Each training has a process of its own. What is finished stays in `--out` and is not trained again.

The plain loop takes nothing from Pellucid but the values of the recipe; images, transforms, model, optimiser, schedule and
evaluation are torchvision's, timm's and torch's. One thing in it is not what people write: `torch.set_flush_denormal(True)`, without
which SqueezeNet on a CPU becomes several times slower after the first epoch and the seconds would compare that alone.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from timm.models import efficientnet
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from pellucid import intervals
from pellucid import recipe as recipes
from pellucid.cli import main as pellucid_command
from pellucid.errors import PellucidError
from pellucid.recipe import Recipe
from pellucid.run import DONE, Run
from pellucid.runtime import num_cores

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
SETS = {"clothing": "clothing-squeezenet", "pets": "pets-squeezenet", "flowers": "flowers-mobilenet"}
PRETRAINED, SCRATCH, PLAIN = "pretrained", "scratch", "plain loop"
QUICK = ["train.phases.0.epochs=1", "train.phases.0.schedule.warmup_epochs=0", "data.image_size=64", "data.resize_size=72"]
EVALUATION_BATCH = 64

# ── the plain loop ────────────────────────────────────────────────────────────────────────────────────────────


class Photographs(Dataset[tuple[Tensor, int]]):
    """(transformed image, label) of files on disk, decoded each time with Pillow."""

    def __init__(self, samples: Sequence[tuple[Path, int]], transform: Callable[[Image.Image], Tensor]) -> None:
        self._samples, self._transform = samples, transform

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self._samples[index]
        with Image.open(path) as image:
            return self._transform(image.convert("RGB")), label


def plain_samples(recipe: Recipe, split: str) -> tuple[list[tuple[Path, int]], int]:
    """(file, label) of each image of a split, and the number of classes; labels are positions among the sorted class names."""
    place = Path(str(getattr(recipe.data, split)))
    match recipe.data.source:
        case "folder":
            named = [(path, path.parent.name) for path in sorted(place.glob("*/*.jpg"))]
        case "prefix":
            named = [(path, path.name.partition("_")[0]) for path in sorted(place.glob("*.jpg"))]
        case "table":
            with place.open(newline="") as file:
                images = Path(str(recipe.data.image_dir).replace("{split}", split))
                named = [(images / row["filename"], row["label"]) for row in csv.DictReader(file)]
        case other:
            raise SystemExit(f"the plain loop reads folder, prefix and table, not {other}")
    classes = sorted({label for _, label in named})
    return [(path, classes.index(label)) for path, label in named], len(classes)


def plain_model(recipe: Recipe, num_classes: int) -> tuple[nn.Module, Sequence[float], Sequence[float]]:
    """The model with its published weights but for the classifier, and the mean and std that they expect."""
    home, _, name = recipe.model.name.partition("/")
    module: nn.Module
    if home == "torchvision":
        module = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **recipe.model.options)
        expected: Any = torchvision.models.get_model_weights(name)["DEFAULT"].transforms()
    else:  # timm builds MobileNet v1 of any width with this function alone
        module = efficientnet._gen_mobilenet_v1(name, num_classes=num_classes, **recipe.model.options)
        expected = timm.models.get_pretrained_cfg(name)
    published = torch.load(str(recipe.model.weights), weights_only=True)
    own = module.state_dict()
    fitting = {key: tensor for key, tensor in published.items() if own[key].shape == tensor.shape}
    left_out = [key for key in own if key not in fitting and not key.endswith("num_batches_tracked")]
    if len(left_out) > 2:
        raise SystemExit(f"{recipe.model.weights}: only the classifier's weight and bias may differ, got {', '.join(left_out)}")
    module.load_state_dict(fitting, strict=False)
    return module, expected.mean, expected.std


def plain_loaders(recipe: Recipe, seed: int, mean: Sequence[float], std: Sequence[float]) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Shuffled training batches with the recipe's crop and flip, and validation batches in order."""
    size, resize, augment = recipe.data.size, recipe.data.resize_size or min(recipe.data.size), recipe.augment
    scale, ratio = augment.random_resized_crop, augment.crop_ratio
    if scale is None:
        raise SystemExit("the plain loop knows random_resized_crop and horizontal_flip alone")
    to_tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std))]
    crop = v2.RandomResizedCrop(size, scale=(scale[0], scale[1]), ratio=(ratio[0], ratio[1]))
    train = v2.Compose([v2.Resize(resize), crop, v2.RandomHorizontalFlip(augment.horizontal_flip), *to_tensor])
    evaluate = v2.Compose([v2.Resize(resize), v2.CenterCrop(size), *to_tensor])
    generator = torch.Generator().manual_seed(seed)
    workers: dict[str, Any] = {"num_workers": recipe.data.workers, "persistent_workers": recipe.data.workers > 0}
    return (
        DataLoader(Photographs(plain_samples(recipe, "train")[0], train), batch_size=recipe.train.batch_size, shuffle=True, generator=generator, **workers),
        DataLoader(Photographs(plain_samples(recipe, "val")[0], evaluate), batch_size=EVALUATION_BATCH, **workers),
    )


def plain_schedule(recipe: Recipe, steps_per_epoch: int) -> Callable[[int], float]:
    """Factor on the learning rate at each step: linear warm-up, then half a cosine to 0."""
    (phase,) = recipe.train.phases
    if phase.schedule.name != "cosine" or phase.schedule.min_lr or phase.schedule.warmup_steps:
        raise SystemExit("the plain loop knows cosine to 0 with warmup_epochs alone")
    warmup, total = round(phase.schedule.warmup_epochs * steps_per_epoch), phase.epochs * steps_per_epoch
    return lambda step: (step + 1) / warmup if step < warmup else 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


@torch.inference_mode()
def plain_accuracy(module: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], memory_format: torch.memory_format) -> tuple[int, int]:
    """(correct, images) of a split."""
    module.eval()
    correct = images = 0
    for x, y in batches:
        correct += int((module(x.to(memory_format=memory_format)).argmax(1) == y).sum())
        images += len(y)
    return correct, images


def plain_run(recipe: Recipe) -> dict[str, Any]:
    """Train by hand with the recipe's settings; accuracy on val after the last epoch, images, and seconds of epochs and evaluations."""
    torch.set_flush_denormal(True)
    torch.set_num_threads(recipe.train.threads or num_cores())
    torch.manual_seed(recipe.seed)
    (phase,) = recipe.train.phases
    settings = phase.optimizer
    if settings.name != "adamw" or settings.exclude_norm_bias or settings.layer_decay != 1 or settings.sam:
        raise SystemExit("the plain loop knows plain AdamW alone")
    memory_format = torch.channels_last if recipe.train.channels_last else torch.contiguous_format
    module, mean, std = plain_model(recipe, plain_samples(recipe, "train")[1])
    module.to(memory_format=memory_format)  # type: ignore[call-overload]
    train, val = plain_loaders(recipe, recipe.seed, mean, std)
    betas = settings.betas[0], settings.betas[1]
    optimizer = torch.optim.AdamW(module.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, betas=betas, eps=settings.eps, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, plain_schedule(recipe, len(train)))
    began, accuracies, images = time.perf_counter(), [], 0
    for _ in range(phase.epochs):
        module.train()
        for x, y in train:
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(module(x.to(memory_format=memory_format)), y).backward()
            optimizer.step()
            schedule.step()
        correct, images = plain_accuracy(module, val, memory_format)
        accuracies.append(correct / images)
    return {"accuracy": accuracies[-1], "images": images, "seconds": time.perf_counter() - began, "accuracies": accuracies}


# ── runs: done once, kept ─────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Outcome:
    """What one training gave: accuracy on val in [0, 1] over `images`, seconds, and the run folder if it was Pellucid's."""

    accuracy: float
    images: int
    seconds: float
    folder: str | None = None


def pellucid_outcome(file: Path, overrides: Sequence[str], folder: Path) -> Outcome:
    """Train a recipe with Pellucid, or read the finished run; an interrupted one is continued."""
    from pellucid.train import resume, train

    if (folder / "run.json").exists():
        run = Run(folder)
        _same_settings(folder, run.recipe, recipes.load(file, overrides))
        if run.record.status != DONE:
            run = resume(folder, quiet=True)
    else:
        run = train(file, overrides=overrides, out=folder, quiet=True)
    accuracy = run.measurements["val/accuracy"]
    return Outcome(accuracy.value, int(accuracy.n), run.record.seconds, str(folder))


def plain_outcome(file: Path, overrides: Sequence[str], result: Path) -> Outcome:
    """Train with the plain loop, or read what it gave before."""
    recipe = recipes.load(file, overrides)
    if result.exists():
        kept = json.loads(result.read_text(encoding="utf-8"))
        _same_settings(result, recipes.Recipe.model_validate(kept["recipe"]), recipe)
        return Outcome(**kept["outcome"])
    found = plain_run(recipe)
    outcome = Outcome(found["accuracy"], found["images"], found["seconds"])
    result.parent.mkdir(parents=True, exist_ok=True)
    temporary = result.with_suffix(".partial")
    kept = {"outcome": asdict(outcome), "accuracies": found["accuracies"], "recipe": recipe.model_dump(mode="json")}
    temporary.write_text(json.dumps(kept, indent=1), encoding="utf-8")
    temporary.replace(result)
    return outcome


def _same_settings(place: Path, kept: Recipe, wanted: Recipe) -> None:
    if kept != wanted:
        raise SystemExit(f"{place} was trained with other settings than the recipe has now; choose another --out or remove it")


def in_a_process(function: Callable[..., Outcome], *arguments: Any) -> Outcome:
    """The result of a call in a fresh process, so that no training meets the torch settings that another one made."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


# ── what is printed ───────────────────────────────────────────────────────────────────────────────────────────


def fraction(value: float) -> str:
    return f"{value:.4f}"


def outcome_row(name: str, setting: str, outcomes: Sequence[Outcome]) -> str:
    accuracies = [outcome.accuracy for outcome in outcomes]
    spread, interval = "", ""
    if len(accuracies) > 1:
        spread, found = fraction(statistics.stdev(accuracies)), intervals.mean(accuracies)
        interval = f"{fraction(found.low)} to {fraction(found.high)}"
    mean, seconds = fraction(statistics.fmean(accuracies)), statistics.median(outcome.seconds for outcome in outcomes)
    return f"| {name} | {setting} | {mean} | {spread} | {interval} | {len(accuracies)} | {outcomes[0].images:,} | {seconds:.1f} |"


def difference_row(name: str, other: str, first: Sequence[Outcome], second: Sequence[Outcome]) -> str:
    a, b = [o.accuracy for o in first], [o.accuracy for o in second]
    difference = statistics.fmean(a) - statistics.fmean(b)
    if min(len(a), len(b)) < 2:
        return f"| {name} | {PRETRAINED} - {other} | {difference:+.4f} | needs two seeds | |"
    found = intervals.welch(a, b)
    return f"| {name} | {PRETRAINED} - {other} | {difference:+.4f} | {found.low:+.4f} to {found.high:+.4f} | {'yes' if found.covers(0) else 'no'} |"


def tables(found: dict[tuple[str, str], list[Outcome]]) -> str:
    """Two markdown tables: each setting, and the differences."""
    lines = [
        "| set | setting | accuracy on val | sample std | 95 % t interval over seeds | seeds | images | seconds, median |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [outcome_row(name, setting, outcomes) for (name, setting), outcomes in found.items()]
    lines += ["", "| set | difference | accuracy | 95 % Welch interval over seeds | covers 0 |", "|---|---|---|---|---|"]
    for name in dict.fromkeys(name for name, _ in found):
        lines += [difference_row(name, other, found[name, PRETRAINED], found[name, other]) for other in (PLAIN, SCRATCH)]
    return "\n".join(lines)


def machine() -> str:
    model = next((line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")), "unknown CPU")
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}, timm {timm.__version__}, python {sys.version.split()[0]}"
    return f"{num_cores()} cores, {model}; {versions}"


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


# ── the bench ─────────────────────────────────────────────────────────────────────────────────────────────────


def bench(names: Sequence[str], seeds: int, overrides: Sequence[str], out: Path) -> dict[tuple[str, str], list[Outcome]]:
    """{(set, setting): one outcome for each seed}; seed by seed, so that all settings see the machine in the same hours."""
    found: dict[tuple[str, str], list[Outcome]] = {(name, setting): [] for name in names for setting in (PRETRAINED, PLAIN, SCRATCH)}
    for name in names:
        pretrained, scratch = RECIPES / f"{SETS[name]}.yaml", RECIPES / f"{SETS[name]}-scratch.yaml"
        for seed in range(1, seeds + 1):
            settings = [*overrides, f"seed={seed}"]
            jobs = {
                PRETRAINED: (pellucid_outcome, pretrained, settings, out / name / "pretrained" / f"seed-{seed}"),
                PLAIN: (plain_outcome, pretrained, settings, out / name / "plain" / f"seed-{seed}.json"),
                SCRATCH: (pellucid_outcome, scratch, settings, out / name / "scratch" / f"seed-{seed}"),
            }
            for setting, (function, *arguments) in jobs.items():
                outcome = in_a_process(function, *arguments)
                found[name, setting].append(outcome)
                print(f"{name}, {setting}, seed {seed}: accuracy {fraction(outcome.accuracy)} in {outcome.seconds:.1f} s", file=sys.stderr, flush=True)
            if len({found[name, setting][-1].images for setting in jobs}) != 1:
                raise SystemExit(f"{name}: Pellucid and the plain loop evaluated different numbers of images")
    return found


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Pellucid beside a plain torchvision loop on real photographs.")
    parser.add_argument("--sets", default=",".join(SETS), help="which sets, by comma (default: all of %(default)s)")
    parser.add_argument("--seeds", type=int, default=None, help="seeds from 1 for each setting (default: 3; quick: 2)")
    parser.add_argument("--out", type=Path, default=None, help="where runs stay and are not trained again (default: runs/bench or runs/bench-quick)")
    parser.add_argument("--quick", action="store_true", help="one epoch of small images: does the bench work, not how good is anything")
    parser.add_argument("-s", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="override a value of all recipes; repeatable")
    given = parser.parse_args()
    unknown = [name for name in given.sets.split(",") if name not in SETS]
    if unknown:
        parser.error(f"no set {unknown[0]!r}; there are {', '.join(SETS)}")
    return given


def main() -> int:
    given = _arguments()
    seeds = given.seeds or (2 if given.quick else 3)
    out = given.out or Path("runs") / ("bench-quick" if given.quick else "bench")
    overrides = [*(QUICK if given.quick else []), *given.overrides]
    try:
        found = bench(given.sets.split(","), seeds, overrides, out)
    except PellucidError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    print(f"{machine()}\n\n{tables(found)}\n")
    folders = [outcome.folder for outcomes in found.values() for outcome in outcomes if outcome.folder is not None]
    return pellucid_command(["compare", *folders, "--metric", "val/accuracy", "--out", os.fspath(out / "compare.html")])


if __name__ == "__main__":
    sys.exit(main())
