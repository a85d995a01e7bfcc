"""The loops that bench/steps.py compares: each trains the same small network with the same AdamW on the same batches.

A contender is a function (steps, clock) that trains so many steps and ticks the clock at each, where it takes a batch. Everything that
is not the network, its loss, AdamW and the batches belongs to the loop that is measured.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

BATCH, SIDE, CLASSES = 32, 8, 10
NUM_BATCHES = 64  # made beforehand and taken in turn
WARMUP = 0.2  # share of the steps of a round before the first reading of the clock
LOG_EVERY = 50  # steps
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ADAMW: dict[str, Any] = {"lr": 1e-4, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}

# ── what all of them train ────────────────────────────────────────────────────────────────────────────────────


def network() -> nn.Module:
    """(B, 3, 8, 8) to (B, 10) logits; its bare step takes a few hundred µs on one core."""
    torch.manual_seed(1)
    width = 128
    return nn.Sequential(
        nn.Flatten(), nn.Linear(3 * SIDE * SIDE, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, CLASSES)
    )  # fmt: skip


def adamw(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(module.parameters(), fused=True, **ADAMW)


def premade_batches() -> list[tuple[Tensor, Tensor]]:
    """NUM_BATCHES of (32, 3, 8, 8) float32 images and (32,) labels."""
    generator = torch.Generator().manual_seed(2)
    return [
        (torch.randn(BATCH, 3, SIDE, SIDE, generator=generator), torch.randint(CLASSES, (BATCH,), generator=generator)) for _ in range(NUM_BATCHES)
    ]  # fmt: skip


class Clock:
    """Wall and CPU time of this process at the first step after the warm-up and then every `block` steps."""

    def __init__(self, steps: int, blocks: int) -> None:
        self._first = int(steps * WARMUP)
        self._block = max(1, (steps - self._first - 1) // blocks)
        self._step = 0
        self._readings: list[tuple[float, float]] = []

    def tick(self) -> None:
        """Call when a batch is taken."""
        if self._step >= self._first and (self._step - self._first) % self._block == 0:
            self._readings.append((time.perf_counter(), time.process_time()))
        self._step += 1

    def blocks(self) -> dict[str, list[float]]:
        """{wall, cpu}: microseconds per step of each block."""
        pairs = list(zip(self._readings, self._readings[1:], strict=False))
        return {name: [(after[i] - before[i]) / self._block * 1e6 for before, after in pairs] for i, name in enumerate(("wall", "cpu"))}


@dataclass
class Batches:
    """`steps` batches, the clock read at each; what peers are given in place of a DataLoader."""

    steps: int
    clock: Clock
    form: Callable[[Tensor, Tensor], Any] = lambda x, y: (x, y)
    _made: list[Any] = field(init=False)

    def __post_init__(self) -> None:
        self._made = [self.form(x, y) for x, y in premade_batches()]

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Any]:
        for step in range(self.steps):
            self.clock.tick()
            yield self._made[step % NUM_BATCHES]


# ── the contenders: each trains `steps` steps and ticks the clock at each ─────────────────────────────────────


def bare(steps: int, clock: Clock) -> None:
    module = network()
    optimizer = adamw(module)
    for x, y in Batches(steps, clock):
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(module(x), y).backward()
        optimizer.step()


def bare_with_bar(steps: int, clock: Clock) -> None:
    """The bare loop with what people add by hand: tqdm, and a line of JSON every 50 steps."""
    from tqdm import tqdm

    module = network()
    optimizer = adamw(module)
    with tempfile.TemporaryFile("w") as log:
        for step, (x, y) in enumerate(tqdm(Batches(steps, clock)), 1):
            optimizer.zero_grad(set_to_none=True)
            loss = F.cross_entropy(module(x), y)
            loss.backward()
            optimizer.step()
            if step % LOG_EVERY == 0:
                log.write(json.dumps({"step": step, "loss": loss.item()}) + "\n")


def fabric(steps: int, clock: Clock) -> None:
    from lightning.fabric import Fabric

    made = Fabric(accelerator="cpu", devices=1)
    module = network()
    module, optimizer = made.setup(module, adamw(module))
    for x, y in Batches(steps, clock):
        optimizer.zero_grad(set_to_none=True)
        made.backward(F.cross_entropy(module(x), y))
        optimizer.step()


def accelerate_loop(steps: int, clock: Clock, *, accumulate: bool) -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    module = network()
    module, optimizer = accelerator.prepare(module, adamw(module))
    for x, y in Batches(steps, clock):
        with accelerator.accumulate(module) if accumulate else contextlib.nullcontext():
            optimizer.zero_grad(set_to_none=True)
            accelerator.backward(F.cross_entropy(module(x), y))
            optimizer.step()


def lightning_trainer(steps: int, clock: Clock, *, told: bool) -> None:
    import lightning
    from lightning.pytorch.loggers import CSVLogger

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = network()

        def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
            x, y = batch
            loss = F.cross_entropy(self.network(x), y)
            if told:
                self.log("loss", loss, prog_bar=True)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return adamw(self)

    with tempfile.TemporaryDirectory() as folder:
        trainer = lightning.Trainer(
            accelerator="cpu", devices=1, max_steps=steps, log_every_n_steps=LOG_EVERY, logger=CSVLogger(folder) if told else False,
            enable_progress_bar=told, enable_checkpointing=False, enable_model_summary=False, default_root_dir=folder,
        )  # fmt: skip
        trainer.fit(Module(), Batches(steps, clock))


def hf_trainer(steps: int, clock: Clock) -> None:
    from transformers import Trainer, TrainingArguments

    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network()

        def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
            logits = self.network(pixel_values)
            return {"loss": F.cross_entropy(logits, labels), "logits": logits}

    class PremadeTrainer(Trainer):
        def get_train_dataloader(self) -> Any:
            return Batches(steps, clock, lambda x, y: {"pixel_values": x, "labels": y})

    with tempfile.TemporaryDirectory() as folder:
        # max_grad_norm 0: no other contender clips.
        arguments = TrainingArguments(
            output_dir=folder, max_steps=steps, per_device_train_batch_size=BATCH, use_cpu=True, logging_steps=LOG_EVERY, report_to="none", save_strategy="no",
            disable_tqdm=False, max_grad_norm=0.0, optim="adamw_torch_fused", learning_rate=ADAMW["lr"], weight_decay=ADAMW["weight_decay"],
            lr_scheduler_type="constant",
        )  # fmt: skip
        PremadeTrainer(Module(), arguments, train_dataset=[0] * (steps * BATCH)).train()


class TinyImages:
    """Pixels in memory: `n` random (8, 8, 3) uint8 images, NUM_BATCHES x 32 of them different."""

    note: str | None = None

    def __init__(self, n: int) -> None:
        self._n = n
        self.images = np.random.default_rng(3).integers(0, 256, (NUM_BATCHES * BATCH, SIDE, SIDE, 3), dtype=np.uint8)

    def __len__(self) -> int:
        return self._n

    def image(self, index: int) -> np.ndarray:
        """(8, 8, 3) uint8."""
        return self.images[index % len(self.images)]


class Clocked:
    """A task of Pellucid with the clock read at each pack; all but the loss is the task's own."""

    def __init__(self, task: Any, clock: Clock) -> None:
        self._task, self._clock = task, clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def loss(self, module: nn.Module, pack: Any) -> tuple[Tensor, Tensor | None, int]:
        self._clock.tick()
        return self._task.loss(module, pack)  # type: ignore[no-any-return]


class Premade(Clocked):
    """The same, but the loss is that of a batch made beforehand, and it alone is logged, as by the peers: augmentation and targets are left out."""

    def __init__(self, task: Any, clock: Clock) -> None:
        super().__init__(task, clock)
        self._made = premade_batches()

    def loss(self, module: nn.Module, pack: Any) -> tuple[Tensor, Tensor | None, int]:
        self._clock.tick()
        x, y = self._made[pack.window.index % NUM_BATCHES]
        return F.cross_entropy(module(x), y, reduction="sum"), None, len(pack)


class Counted(Premade):
    """With training accuracy, which Pellucid logs besides."""

    def loss(self, module: nn.Module, pack: Any) -> tuple[Tensor, Tensor | None, int]:
        self._clock.tick()
        x, y = self._made[pack.window.index % NUM_BATCHES]
        logits = module(x)
        return F.cross_entropy(logits, y, reduction="sum"), torch.count_nonzero(logits.detach().argmax(1) == y), len(pack)


RECIPE = """\
task: classification
data: {{source: scenes, train: {images}, image_size: 8, normalize: imagenet, workers: 0}}
model: {{name: timm/test_vit}}
augment: {{random_crop: 1, horizontal_flip: 0.5}}
train:
  batch_size: 32
  micro_batch_size: 32
  threads: 1
  device: cpu
  checkpoint_seconds: 0.25
  phases:
    - {{epochs: 1, optimizer: {{name: adamw, lr: 1e-4, weight_decay: 0.01}}}}
"""


def pellucid_loop(steps: int, clock: Clock, *, task: type[Clocked], reads: bool) -> None:
    """Pellucid's own loop on a run in a temporary folder, with its bar and metrics.jsonl; `reads`: whether it reads its packs from pixels."""
    # Here, because they take seconds to import and the other contenders have no use for them.
    import pellucid
    from pellucid import loop
    from pellucid import recipe as recipes
    from pellucid.data.dataset import Dataset, Split
    from pellucid.models import Built
    from pellucid.prepare import Prepared, assemble
    from pellucid.progress import Progress
    from pellucid.run import RUNNING, Run, RunRecord
    from pellucid.runtime import start

    with tempfile.TemporaryDirectory() as folder, Progress() as progress:
        file = Path(folder, "bench.yaml")
        file.write_text(RECIPE.format(images=steps * BATCH), encoding="utf-8")
        recipe = recipes.load(file)
        rows = range(steps * BATCH)
        split = Split("train", [str(row) for row in rows], random_labels(len(rows)), [f"{row:032x}" for row in rows], _never_opened)
        dataset = Dataset(tuple(map(str, range(CLASSES))), {"train": split})
        runtime = start(device="cpu", precision="fp32", threads=1, channels_last=False)
        record = RunRecord(pellucid.__version__, RUNNING, recipe.task, [], "")
        run = Run.create(Path(folder, "run"), record=record, recipe=recipe, recipe_text="")
        prepared = Prepared(dataset, runtime, {"train": TinyImages(len(rows))}, Built(network(), MEAN, STD, (), []), [], None)
        training = assemble(run, record, recipe, prepared, progress)
        training.task = task(training.task, clock)
        with contextlib.nullcontext() if reads else mock.patch.object(loop, "Reader", _premade_reader()):
            loop.fit(training, None, threading.Event())


def _premade_reader() -> type:
    """A Reader that reads one pack and hands it over for every window, as peers are handed batches made beforehand."""
    from pellucid.data.loader import Pack, Reader, Window

    class PremadeReader(Reader):
        made: Pack | None = None

        def plan(self, windows: list[Window], micro_batch_size: int) -> None:
            (self.made,) = super().packs(windows[0], micro_batch_size)

        def packs(self, window: Window, micro_batch_size: int) -> Iterator[Pack]:
            assert self.made is not None
            yield Pack(window, self.made.start, self.made.stop, self.made.images, self.made.rows, self.made.draws)

    return PremadeReader


def _never_opened(index: int) -> Any:
    raise AssertionError("the bench hands over pixels")


def random_labels(n: int) -> np.ndarray:
    return np.random.default_rng(4).integers(0, CLASSES, n)


def bare_with_loader(steps: int, clock: Clock) -> None:
    """The bare loop on the same uint8 images through DataLoader and torchvision's v2 transforms, one image at a time as its users write it."""
    from torch.utils.data import DataLoader, Dataset
    from torchvision.transforms import v2

    class Images(Dataset[tuple[Tensor, int]]):
        def __init__(self) -> None:
            self._pixels = torch.from_numpy(TinyImages(1).images).permute(0, 3, 1, 2)
            self._labels = random_labels(steps * BATCH).tolist()
            self._transform = v2.Compose([
                v2.RandomCrop(SIDE, padding=1), v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)
            ])  # fmt: skip

        def __len__(self) -> int:
            return steps * BATCH

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            return self._transform(self._pixels[index % len(self._pixels)]), self._labels[index]

    module = network()
    optimizer = adamw(module)
    for x, y in DataLoader(Images(), batch_size=BATCH, shuffle=True):
        clock.tick()
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(module(x), y).backward()
        optimizer.step()


# ── which there are ───────────────────────────────────────────────────────────────────────────────────────────

Contender = Callable[[int, Clock], None]
BARE = "bare loop"
BARE_WITH_LOADER = "bare loop, DataLoader and v2 transforms"
CONTENDERS: dict[str, tuple[str, Contender]] = {  # name: (the package that it needs, what trains)
    BARE: ("torch", bare),
    "bare loop, tqdm and JSON by hand": ("tqdm", bare_with_bar),
    "Fabric, neither bar nor log": ("lightning", fabric),
    "accelerate, neither": ("accelerate", partial(accelerate_loop, accumulate=False)),
    "accelerate with accumulate(), neither": ("accelerate", partial(accelerate_loop, accumulate=True)),
    "Lightning, neither": ("lightning", partial(lightning_trainer, told=False)),
    "Lightning, bar and CSV log": ("lightning", partial(lightning_trainer, told=True)),
    "HF Trainer, bar and log": ("transformers", hf_trainer),
    "Pellucid, bar and log": ("pellucid", partial(pellucid_loop, task=Premade, reads=False)),
    "Pellucid, bar, log and training accuracy": ("pellucid", partial(pellucid_loop, task=Counted, reads=False)),
    "Pellucid, bar and log, reading its images": ("pellucid", partial(pellucid_loop, task=Premade, reads=True)),
    BARE_WITH_LOADER: ("torchvision", bare_with_loader),
    "Pellucid, whole": ("pellucid", partial(pellucid_loop, task=Clocked, reads=True)),
}
BASES = {"Pellucid, whole": BARE_WITH_LOADER}  # over what the difference is taken; BARE unless named here
SHORTER = {BARE_WITH_LOADER: 8, "Pellucid, whole": 8}  # these take a step of milliseconds: so many times fewer of them in a round
