"""Exactness: what training does beside what its recipe says, Pellucid and its peers in one run, each row against its definition.

All train one small network on the same drawn scenes by their public entry points. Nothing is asked of them: hooks of torch record which
samples go into the network and what gradient stands before each optimiser step, and the gradient by definition is computed here, in
float64, from those samples and the weights of that moment. Each column has a process of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from peers import INSTALL, is_installed, machine, markdown_table
from witness import SIDE, Watch, beside_definition, bits, inputs, network, relative_error, sam_gradient, same, scenes, seen

LR = 0.05
SHORT, RAGGED, RESUMED, BITS, WORKERS, SAM, BROKEN = CASES = (
    "accumulation, short last window (40 samples, micro-batches of 4, accumulate 4): last gradient",
    "accumulation, ragged (37 samples): last gradient",
    "killed at step 5 of 10 and resumed, 40 samples: seen twice / never",
    "the same: weights after the epoch, beside an unbroken run",
    "0, 1 and 2 data workers: weights after an epoch",
    "SAM, accumulated, short last window: largest error of a gradient",
    "a truncated JPEG among the training images",
)
DEFINITIONS = ("error 0, size 1", "error 0, size 1", "0 / 0", "equal bits", "equal bits", "error 0", "an error that names it")


@dataclass(frozen=True)
class How:
    """How a peer trains an epoch in micro-batches of 4: killed at step 5, or resumed from there."""

    accumulate: int = 1
    shuffle: bool = True
    kill: bool = False
    resume: bool = False


class KilledError(Exception):
    """Raised by the bench where a process would be killed."""


# ── Pellucid ──────────────────────────────────────────────────────────────────────────────────────────────────

RECIPE = """\
task: classification
data: {{source: scenes, train: {n}, image_size: 32, normalize: none}}
model: {{name: timm/test_vit, options: {{patch_size: 8, embed_dim: 32, num_heads: 2, depth: 2}}}}
train:
  batch_size: 16
  micro_batch_size: 4
  threads: 1
  device: cpu
  phases: [{{epochs: 1, optimizer: {{name: sgd, lr: 0.05}}}}]
"""


def pellucid_train(folder: Path, n: int, *overrides: str, watch: Watch | None = None) -> Path:
    """Train the recipe into `folder` and return the file of the final weights."""
    import pellucid

    (folder.parent / "exactness.yaml").write_text(RECIPE.format(n=n), encoding="utf-8")
    given = folder.parent / "exactness.yaml"
    if watch is None:
        return pellucid.train(given, overrides=overrides, out=folder, quiet=True, figures=False).final_weights
    with watch:
        return pellucid.train(given, overrides=overrides, out=folder, quiet=True, figures=False).final_weights


def pellucid_resumed(folder: Path, images: np.ndarray) -> dict[str, str]:
    import pellucid
    from pellucid.errors import InterruptedError

    small = ("train.batch_size=4",)
    unbroken = pellucid_train(folder / "unbroken", 40, *small)
    first = Watch(images, lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 5 else None)
    with suppress(InterruptedError):
        pellucid_train(folder / "broken", 40, *small, watch=first)
    with Watch(images) as second:
        resumed = pellucid.resume(folder / "broken", quiet=True, figures=False).final_weights
    return {RESUMED: seen(first.rows + second.rows, 40), BITS: same([unbroken.read_bytes(), resumed.read_bytes()])}


def pellucid_sam(folder: Path, images: np.ndarray, labels: Tensor) -> str:
    rho = 0.05
    watch = Watch(images)
    pellucid_train(folder / "sam", 40, "train.phases.0.optimizer.sam.rho=0.05", watch=watch)
    errors = []
    for step in watch.steps:
        rows = step.rows[: len(step.rows) // 2]
        if rows != step.rows[len(rows) :]:
            return "the two passes saw different samples"
        expected = sam_gradient(step.network, inputs(images)[rows].double(), labels[rows], rho)
        errors.append(relative_error(step.gradient, expected))
    return f"error {max(errors):.1e} in {len(errors)} steps"


def pellucid_broken(folder: Path) -> str:
    from pellucid.errors import PellucidError

    train, name = broken_folder(folder)
    overrides = ["data.source=folder", f"data.train={train}"]
    try:
        pellucid_train(folder / "run-broken", 4, *overrides)
    except PellucidError as error:
        return f"{type(error).__name__} that names it" if name in str(error) else f"{type(error).__name__} without its name"
    return "trained"


def pellucid_column() -> dict[str, str]:
    images, labels = scenes(40)
    found = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for case, n in ((SHORT, 40), (RAGGED, 37)):
            watch = Watch(images)
            pellucid_train(folder / f"accumulated-{n}", n, watch=watch)
            found[case] = beside_definition(watch.steps[-1], images, labels)
        found |= pellucid_resumed(folder, images)
        jitter = ("augment.random_crop=2", "augment.horizontal_flip=0.5", "augment.color_jitter=[0.3, 0.3, 0.3, 0.1]")
        found[WORKERS] = same([pellucid_train(folder / f"workers-{w}", 40, *jitter, f"data.workers={w}").read_bytes() for w in (0, 1, 2)])
        found[SAM] = pellucid_sam(folder, images, labels)
        found[BROKEN] = pellucid_broken(folder)
    return found


# ── Lightning ─────────────────────────────────────────────────────────────────────────────────────────────────


def lightning_fit(folder: Path, images: np.ndarray, labels: Tensor, how: How) -> nn.Module:
    import lightning
    from lightning.pytorch.callbacks import Callback, ModelCheckpoint

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = network()

        def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
            x, y = batch
            return F.cross_entropy(self.network(x), y)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=LR, momentum=0.9)

    class Kill(Callback):
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            if how.kill and trainer.global_step == 5:
                raise KilledError

    lightning.seed_everything(1, verbose=False)
    loader = DataLoader(TensorDataset(inputs(images), labels), batch_size=4, shuffle=how.shuffle)
    trainer = lightning.Trainer(
        accelerator="cpu", devices=1, max_epochs=1, accumulate_grad_batches=how.accumulate, logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[ModelCheckpoint(folder, filename="state", every_n_train_steps=5, save_top_k=-1), Kill()], default_root_dir=folder,
    )  # fmt: skip
    module = Module()
    trainer.fit(module, loader, ckpt_path=folder / "state.ckpt" if how.resume else None)
    return module.network


# ── accelerate ────────────────────────────────────────────────────────────────────────────────────────────────


def accelerate_fit(folder: Path, images: np.ndarray, labels: Tensor, how: How, *, seedable: bool = False) -> nn.Module:
    """The loop of its documentation, with `accumulate`, `save_state`, `load_state` and `skip_first_batches`; seedable: with its option use_seedable_sampler."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import DataLoaderConfiguration, set_seed

    AcceleratorState._reset_state(True)
    set_seed(1)
    sampler = DataLoaderConfiguration(use_seedable_sampler=seedable)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=how.accumulate, dataloader_config=sampler)
    module = network()
    loader = DataLoader(TensorDataset(inputs(images), labels), batch_size=4, shuffle=how.shuffle)
    module, optimizer, loader = accelerator.prepare(module, torch.optim.SGD(module.parameters(), lr=LR, momentum=0.9), loader)
    done = 0
    if how.resume:
        accelerator.load_state(str(folder))
        done, loader = 5, accelerator.skip_first_batches(loader, 5)
    for step, (x, y) in enumerate(loader, done):
        if how.kill and step == 5:
            accelerator.save_state(str(folder))
            raise KilledError
        with accelerator.accumulate(module):
            accelerator.backward(F.cross_entropy(module(x), y))
            optimizer.step()
            optimizer.zero_grad()
    return module


# ── HF Trainer ────────────────────────────────────────────────────────────────────────────────────────────────


def hf_fit(folder: Path, images: np.ndarray, labels: Tensor, how: How) -> nn.Module:
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network()

        def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
            logits = self.network(pixel_values)
            return {"loss": F.cross_entropy(logits, labels), "logits": logits}

    class Kill(TrainerCallback):
        def on_save(self, *_: Any, **__: Any) -> None:
            if how.kill:
                raise KilledError

    arguments = TrainingArguments(
        output_dir=str(folder), num_train_epochs=1, per_device_train_batch_size=4, gradient_accumulation_steps=how.accumulate, use_cpu=True, report_to="none",
        save_strategy="steps", save_steps=5, disable_tqdm=True, max_grad_norm=0.0, optim="sgd", optim_args="momentum=0.9", learning_rate=LR, seed=1,
        lr_scheduler_type="constant", train_sampling_strategy="random" if how.shuffle else "sequential",
    )  # fmt: skip
    rows = [{"pixel_values": x, "labels": y} for x, y in zip(inputs(images), labels, strict=True)]
    module = Module()
    Trainer(module, arguments, train_dataset=rows, callbacks=[Kill()]).train(resume_from_checkpoint=how.resume or None)
    return module.network


SEEDABLE = "accelerate, use_seedable_sampler"
FITS: dict[str, Callable[[Path, np.ndarray, Tensor, How], nn.Module]] = {
    "Lightning": lightning_fit, "accelerate": accelerate_fit, SEEDABLE: partial(accelerate_fit, seedable=True), "HF Trainer": hf_fit,
}  # fmt: skip


def trainer_column(name: str) -> dict[str, str]:
    """The rows that concern the loop of a peer; it reads images with whatever Dataset its user wrote."""
    fit = FITS[name]
    images, labels = scenes(40)
    found = dict.fromkeys(CASES, "")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for case, n in ((SHORT, 40), (RAGGED, 37)):
            with Watch(images) as watch:
                fit(folder / str(n), images[:n], labels[:n], How(accumulate=4, shuffle=False))
            found[case] = beside_definition(watch.steps[-1], images, labels)
        unbroken = fit(folder / "unbroken", images, labels, How())
        with Watch(images) as first, suppress(KilledError):
            fit(folder / "broken", images, labels, How(kill=True))
        with Watch(images) as second:
            resumed = fit(folder / "broken", images, labels, How(resume=True))
        found[RESUMED] = seen(first.rows[:20] + second.rows, 40)
        found[BITS] = same([bits(unbroken), bits(resumed)])
    found[SAM] = "has none"
    return found


# ── timm's loader ─────────────────────────────────────────────────────────────────────────────────────────────


def broken_folder(folder: Path) -> tuple[Path, str]:
    """Six JPEGs in two class folders, and the name of the one that is cut in half."""
    from PIL import Image

    images, _ = scenes(6)
    for row, image in enumerate(images):
        file = folder / "broken-images" / "ab"[row // 3] / f"{row}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file, quality=95)
    broken = folder / "broken-images" / "a" / "2.jpg"
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 2])
    return folder / "broken-images", broken.name


def timm_weights(folder: Path, workers: int) -> str:
    """Bits of the network after one epoch of timm's training loader, seeded as its script does."""
    from timm.data import ImageDataset, create_loader
    from timm.utils import random_seed

    random_seed(1, 0)
    loader = create_loader(
        ImageDataset(str(folder)), input_size=(3, SIDE, SIDE), batch_size=8, is_training=True, use_prefetcher=False, num_workers=workers,
        persistent_workers=False, color_jitter=0.3,
    )  # fmt: skip
    module = network()
    optimizer = torch.optim.SGD(module.parameters(), lr=LR, momentum=0.9)
    random_seed(1, 0)
    for x, y in loader:
        optimizer.zero_grad()
        F.cross_entropy(module(x), y).backward()
        optimizer.step()
    return bits(module)


def timm_column() -> dict[str, str]:
    from PIL import Image
    from timm.data import ImageDataset

    images, labels = scenes(40)
    found = dict.fromkeys(CASES, "")
    with tempfile.TemporaryDirectory() as temporary:
        whole = Path(temporary) / "whole"
        for row, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
            (whole / str(label)).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(whole / str(label) / f"{row}.png")
        found[WORKERS] = same([timm_weights(whole, workers) for workers in (0, 1, 2)])
        dataset = ImageDataset(str(broken_folder(Path(temporary))[0]))
        (got, label), (following, next_label) = dataset[2], dataset[3]
        swapped = np.array_equal(np.asarray(got), np.asarray(following)) and label == next_label
        found[BROKEN] = "the next image and its label in its place, a line in the log" if swapped else "another image in its place"
    return found


# ── the table ─────────────────────────────────────────────────────────────────────────────────────────────────

COLUMNS: dict[str, tuple[str, Callable[[], dict[str, str]]]] = {  # name: (the package that it needs, what fills it)
    "Pellucid": ("pellucid", pellucid_column),
    "Lightning": ("lightning", partial(trainer_column, "Lightning")),
    "accelerate": ("accelerate", partial(trainer_column, "accelerate")),
    SEEDABLE: ("accelerate", partial(trainer_column, SEEDABLE)),
    "HF Trainer": ("transformers", partial(trainer_column, "HF Trainer")),
    "timm's loader": ("timm", timm_column),
}
COMPOSER = "composer, the one peer with SAM, was not run: mosaicml 0.32.1 needs torch below 2.7.1."


def filled(name: str) -> dict[str, str]:
    """{case: cell} of one column, in a fresh process, so that nobody meets the torch settings that another one made."""
    needs, column = COLUMNS[name]
    if not is_installed(needs):
        return dict.fromkeys(CASES, INSTALL)
    try:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), initializer=_prepare_process) as pool:
            return pool.submit(column).result()
    except Exception as error:
        # A peer that does not run here is a cell that says so; ours has to run.
        if name == "Pellucid":
            raise
        return dict.fromkeys(CASES, f"failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")


def _prepare_process() -> None:
    """One thread, no network; what libraries say goes to stderr."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore"}
    warnings.simplefilter("ignore")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    torch.set_num_threads(1)


def table(columns: dict[str, dict[str, str]]) -> str:
    """One row for each case: its definition and what each column did."""
    rows = [[case, definition, *(found.get(case, "") for found in columns.values())] for case, definition in zip(CASES, DEFINITIONS, strict=True)]
    return markdown_table(["case", "by definition", *columns], rows)


def main() -> int:
    parser = argparse.ArgumentParser(description="What training does beside its definition, Pellucid and its peers.")
    parser.add_argument("--only", action="append", choices=list(COLUMNS), metavar="NAME", help="this column alone; repeatable: " + ", ".join(COLUMNS))
    names = parser.parse_args().only or list(COLUMNS)
    began, found = time.monotonic(), {}
    for name in names:
        print(f"exactness: {name}", file=sys.stderr, flush=True)
        found[name] = filled(name)
    print(f"{machine()}; {time.monotonic() - began:.0f} s\n\n{table(found)}\n\n{COMPOSER}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
