"""Captioning: a sentence for each picture, learned by teacher forcing and found token by token.

The part of training that knows what captions are: the tokens of each epoch, the loss over those that are no padding, evaluation of what was found and of how
likely the pictures' own captions are, measurements beside captions that need no network; and what a finished run can be asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import PIL.Image
import torch
from torch import Tensor, nn

from pellucid.caption_scores import caption_scores, most_frequent
from pellucid.data.augment import Augment, evaluate_view
from pellucid.data.captions import mirrored_words
from pellucid.data.dataset import Captions, Dataset, Split
from pellucid.data.draws import integers, uniforms
from pellucid.data.images import opened, resize
from pellucid.data.loader import Pack, Window, ordered_windows, pack_images
from pellucid.data.store import Pixels
from pellucid.data.text import CaptionTokenizer, build_tokenizer, load_tokenizer
from pellucid.errors import DataError
from pellucid.losses import PADDING, token_cross_entropy
from pellucid.models.backbones import Built
from pellucid.models.weights import WeightsReport
from pellucid.predictions import CaptionPredictions
from pellucid.recipe import Recipe
from pellucid.run import Measurement, Run, Vocabulary
from pellucid.runtime import Runtime
from pellucid.tasks.caption_numbers import NUMBERS, measure_captions
from pellucid.tasks.evaluated import packs, raw_pixels
from pellucid.tasks.protocol import NOTHING_STORED, PackLoss, Stored

if TYPE_CHECKING:  # transformers takes seconds to import, and every command imports the tasks
    from pellucid.models.captioner import Captioner, Generation

__all__ = ["NUMBERS", "CaptionPrediction", "Captioning", "build", "generation_of", "mirror_notes", "predict", "with_tokenizer"]

MOST_NUMBERS = 1 << 25  # float32 logits of own captions that are computed at once: 128 MB
MOST_MIRRORED = 0.05  # share of captions that name a side, above which mirrored pictures are refused
MOST_TURNED = 45.0  # degrees up to which a turned picture leaves what is above above
PIXEL_BATCH = 64  # images whose raw pixels are taken at once


@dataclass(frozen=True)
class CaptionPrediction:
    """What a model says of one image. tokens: of the caption, the end included. score: their log probability in nats."""

    file: str
    caption: str
    tokens: tuple[int, ...]
    score: float


class TokenTable:
    """The tokens of the captions of a split, behind each other: 4 bytes a token.

    first: (n + 1,) where the captions of each sample begin; ends: (m + 1,) where the tokens of each caption do.
    """

    def __init__(self, captions: Captions, tokenizer: CaptionTokenizer) -> None:
        self.vocabulary = tokenizer.vocabulary
        encoded = [np.array(tokenizer.encode(text), np.int32) for texts in captions.texts for text in texts]
        self.flat = np.concatenate([np.empty(0, np.int32), *encoded])
        self.first = np.cumsum([0, *(len(texts) for texts in captions.texts)])
        self.ends = np.cumsum([0, *map(len, encoded)])

    def lengths(self, chosen: np.ndarray) -> np.ndarray:
        """(R,) int64 tokens of some captions, the ends included."""
        return self.ends[chosen + 1] - self.ends[chosen]

    def all_of(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """((R,) captions of some samples, (R,) the place among `rows` of the sample of each)."""
        counts = self.first[rows + 1] - self.first[rows]
        owners = np.repeat(np.arange(len(rows)), counts)
        return np.concatenate([np.empty(0, np.int64), *(np.arange(self.first[row], self.first[row + 1]) for row in rows.tolist())]), owners

    def padded(self, chosen: np.ndarray) -> Tensor:
        """(R, 1 + T) int64: start sign, tokens of each caption with its end, padding."""
        lengths = self.lengths(chosen)
        table = np.full((len(chosen), 1 + int(lengths.max(initial=1))), self.vocabulary.pad, np.int64)
        table[:, 0] = self.vocabulary.start
        for row, (caption, length) in enumerate(zip(chosen.tolist(), lengths.tolist(), strict=True)):
            table[row, 1 : 1 + length] = self.flat[self.ends[caption] : self.ends[caption] + length]
        return torch.from_numpy(table)

    def targets(self, chosen: np.ndarray, tokens: Tensor) -> Tensor:
        """(R, T) int64: what each position of `tokens` but the last is followed by, PADDING behind the end."""
        behind = torch.arange(tokens.shape[1] - 1) >= torch.from_numpy(self.lengths(chosen))[:, None]
        return tokens[:, 1:].masked_fill(behind, PADDING)


class Captioning:
    """Tokens, loss and measurements of a captioning run; built once, before the model."""

    name = "captioning"
    headline = "cider"
    accuracy = "token accuracy"
    from_the_start = False
    batch_size = PIXEL_BATCH
    needs_partners = False

    def __init__(
        self, recipe: Recipe, dataset: Dataset, runtime: Runtime, mean: Sequence[float], std: Sequence[float], stored: Stored = NOTHING_STORED
    ) -> None:
        assert recipe.text is not None
        assert dataset.tokenizer is not None
        self._recipe, self._dataset, self._runtime, self._pixels, self._tokenizer = recipe, dataset, runtime, stored.pixels, dataset.tokenizer
        self._augment = Augment.from_section(
            recipe.augment, size=recipe.data.size, mean=mean, std=std, seed=recipe.seed, interpolation=recipe.data.interpolation
        )
        self._view = (recipe.data.size, tuple(mean), tuple(std))
        self._smoothing, self._one = recipe.loss.label_smoothing, recipe.text.captions == "one"
        self._tables = {name: TokenTable(_captions(split), self._tokenizer) for name, split in dataset.splits.items()}
        self._generation = generation_of(recipe, dataset.tokenizer.vocabulary)

    def _chosen(self, window: Window, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """((R,) captions that positions `start` to `stop` of a window learn, (R,) the position of each from `start`)."""
        table, rows = self._tables["train"], window.rows[start:stop]
        if not self._one:
            return table.all_of(rows)
        u = uniforms(self._recipe.seed, window.epoch, window.draws[start:stop], "caption", 1)[:, 0]
        return table.first[rows] + integers(u, table.first[rows + 1] - table.first[rows]), np.arange(len(rows))

    def window_weight(self, window: Window) -> float:
        """What the summed loss of a window is divided by: the tokens of its captions, their ends included."""
        return float(self._tables["train"].lengths(self._chosen(window, 0, len(window))[0]).sum())

    def loss(self, module: nn.Module, pack: Pack) -> PackLoss:
        """Summed loss of a pack, and how many of its tokens are the likeliest, on the device."""
        device, table = self._runtime.device, self._tables["train"]
        images = self._augment(pack.images.to(device), samples=pack.draws, epoch=pack.window.epoch)
        chosen, owners = self._chosen(pack.window, pack.start, pack.stop) if not pack.idle else table.all_of(pack.rows[:1])
        tokens = table.padded(chosen)
        targets = table.targets(chosen, tokens)
        if pack.idle:  # it holds an image that does not count
            targets = torch.full_like(targets, PADDING)
        with self._runtime.autocast():
            logits = module(images.to(memory_format=self._runtime.memory_format), tokens[:, :-1].to(device), torch.from_numpy(owners).to(device))
        targets = targets.to(device, non_blocking=True)
        right = torch.count_nonzero(logits.detach().argmax(-1) == targets)
        return PackLoss(token_cross_entropy(logits, targets, label_smoothing=self._smoothing), right, int((targets != PADDING).sum()))

    def after_step(self, module: nn.Module, step: int, total_steps: int) -> None:
        """Nothing follows the weights."""

    def watch(self, module: nn.Module, workers: int) -> dict[str, float]:
        """Nothing is watched between evaluations."""
        return {}

    def alarms(self, lines: Sequence[dict[str, Any]]) -> list[str]:
        """None: a training that fails says so itself."""
        return []

    # ── what is found ──

    @torch.inference_mode()
    def predictions(
        self,
        module: nn.Module,
        split: Split,
        pixels: Pixels,
        windows: Sequence[Window],
        *,
        workers: int,
        keep: bool = True,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> CaptionPredictions:
        """Captions of the samples of some windows of a split, in their order. The module is put into eval mode and stays there."""
        module.eval()
        told = None if progress is None else partial(progress, f"captioning {split.name}")
        found = [self._of_pack(cast("Captioner", module), split.name, pack) for pack in packs(pixels, windows, workers, told)]
        if not found:
            return _predictions([], np.empty((0, 0), np.int64), [], [], split.name)
        return CaptionPredictions.joined(found, np.arange(sum(map(len, windows)))) if len(found) > 1 else found[0]

    def _of_pack(self, module: Captioner, split: str, pack: Pack) -> CaptionPredictions:
        size, mean, std = self._view
        images = evaluate_view(pack.images.to(self._runtime.device), size=size, mean=mean, std=std).to(memory_format=self._runtime.memory_format)
        with self._runtime.autocast():
            memory = module.encode(images)
            generated = module.generate(images, self._generation, memory)
        own = own_captions(module, memory, self._tables[split], pack.rows, self._runtime)
        files = [self._dataset.splits[split].names[int(row)] for row in pack.rows]
        return _predictions(files, generated.tokens.cpu().numpy(), generated.scores.cpu().tolist(), own, split)

    def quick(self, predictions: CaptionPredictions) -> dict[str, float]:
        """{loss, token_accuracy, cider, exact_match} for the curves."""
        scores = caption_scores(*self._texts(predictions))
        return {
            "loss": float(predictions.loss.sum() / predictions.counted.sum()),
            "token_accuracy": float(predictions.correct.sum() / predictions.counted.sum()),
            "cider": float(scores.cider_d.mean()),
            "exact_match": float(scores.exact.mean()),
        }

    def _texts(self, predictions: CaptionPredictions) -> tuple[list[str], list[tuple[str, ...]]]:
        """(captions that were found, own captions) of each sample."""
        split = self._dataset.splits[predictions.split]  # pictures of different splits may have the same name
        own = dict(zip(split.names, _captions(split).texts, strict=True))
        return [self._tokenizer.decode(row) for row in predictions.tokens.tolist()], [own[file] for file in predictions.files]

    def measure(self, predictions: CaptionPredictions, split: str, note: str) -> list[Measurement]:
        """All reported numbers of a split; `note` says which weights they belong to. Baselines are computed here, from the training pictures."""
        candidates, references = self._texts(predictions)
        baselines = {"most_frequent": self._most_frequent(len(candidates)), "nearest": self._nearest(split)}
        return measure_captions(
            candidates, references, predictions, baselines, split=split, seed=self._recipe.seed, found=describe(self._generation), note=note
        )

    def _most_frequent(self, n: int) -> list[str]:
        return [most_frequent(text for texts in _captions(self._dataset.splits["train"]).texts for text in texts)] * n

    def _nearest(self, split: str) -> list[str]:
        """The first caption of the training picture whose raw pixels are nearest, for each sample of a split."""
        rows = nearest_pictures(self._raw("train"), self._raw(split))
        return [_captions(self._dataset.splits["train"]).texts[row][0] for row in rows.tolist()]

    def _raw(self, split: str) -> np.ndarray:
        """(n, 768) float32 raw pixels of a split."""
        windows = ordered_windows(len(self._dataset.splits[split]), min(PIXEL_BATCH, self.batch_size))
        return np.concatenate([raw_pixels(pack.images, *self._view) for pack in packs(self._pixels[split], windows, self._recipe.data.workers)])

    def save(self, run: Run, split: str, predictions: CaptionPredictions) -> list[Path]:
        """Tokens and likelihoods as arrays, captions as a table, and the pictures' own captions."""
        captions = _captions(self._dataset.splits[split])
        own = run.write_captions(split, dict(zip(self._dataset.splits[split].names, captions.texts, strict=True)))
        return [*run.write_caption_predictions(split, predictions, self._texts(predictions)[0]), own]

    def mistakes(self, predictions: CaptionPredictions, most: int) -> np.ndarray:
        """Rows of the pictures with the worst captions by CIDEr-D, the worst first, and, behind them, of those with the best."""
        order = np.argsort(caption_scores(*self._texts(predictions)).cider_d, kind="stable")
        half = min(most // 2, len(order) // 2) or len(order)
        return np.concatenate([order[:half], order[::-1][: min(half, len(order) - half)]])

    def thumbnails(self, split: Split, row: int, predictions: CaptionPredictions, side: int) -> dict[str, PIL.Image.Image]:
        """The image."""
        image = split.open(row)
        image.thumbnail((side, side))
        return {".webp": image}


def _captions(split: Split) -> Captions:
    assert split.captions is not None
    return split.captions


def own_captions(module: Captioner, memory: Any, table: TokenTable, rows: np.ndarray, runtime: Runtime) -> list[np.ndarray]:
    """For each of the samples `rows`, whose pictures `memory` holds, the (t, 2) float32 tokens of its own captions: log probability, 1 where the likeliest.

    A few captions at a time, each predicted token by token from those before it.
    """
    chosen, owners = table.all_of(rows)
    found: list[list[np.ndarray]] = [[] for _ in rows]
    longest = int(table.lengths(chosen).max(initial=1))
    at_once = max(1, MOST_NUMBERS // (longest * table.vocabulary.size))
    for start in range(0, len(chosen), at_once):
        part, own = chosen[start : start + at_once], owners[start : start + at_once]
        tokens = table.padded(part)
        targets = table.targets(part, tokens).to(runtime.device)
        with runtime.autocast():
            logits = module.decode(memory, tokens[:, :-1].to(runtime.device), torch.from_numpy(own).to(runtime.device))
        known = targets != PADDING
        log_p = logits.float().log_softmax(-1).gather(-1, targets.clamp_min(0)[..., None])[..., 0]
        seen = torch.stack([log_p, (logits.argmax(-1) == targets).float()], dim=-1).cpu().numpy()
        for row, owner in enumerate(own.tolist()):
            found[owner].append(seen[row][known[row].cpu().numpy()])
    return [np.concatenate(each) for each in found]


def _predictions(files: list[str], tokens: np.ndarray, scores: list[float], own: Sequence[np.ndarray], split: str) -> CaptionPredictions:
    digests = b"".join(hashlib.blake2b(np.ascontiguousarray(each[:, 0]).tobytes(), digest_size=16).digest() for each in own)
    return CaptionPredictions(
        files,
        tokens.astype(np.int64),
        np.array(scores, np.float64),
        np.array([-each[:, 0].sum(dtype=np.float64) for each in own], np.float64),
        np.array([len(each) for each in own], np.int64),
        np.array([int(each[:, 1].sum()) for each in own], np.int64),
        np.frombuffer(digests, np.uint8).reshape(-1, 16),
        split,
    )


def nearest_pictures(bank: np.ndarray, points: np.ndarray, *, at_once: int = 256) -> np.ndarray:
    """(n,) int64: for each of (n, D) points the row of (m, D) `bank` at the least Euclidean distance, the first of equal ones; in float64."""
    placed = torch.from_numpy(bank).double()
    lengths, found = placed.square().sum(1), []
    for part in torch.from_numpy(points).double().split(at_once):
        squared = lengths - 2 * part @ placed.T  # up to the length of the point, which is the same for all
        least = squared.min(1, keepdim=True).values
        found.append((squared <= least + 1e-9 * lengths.max().clamp_min(1.0)).int().argmax(1))  # equal ones differ by rounding
    return torch.cat(found).numpy() if found else np.empty(0, np.int64)


# ── before the first step ─────────────────────────────────────────────────────────────────────────────────────


def with_tokenizer(recipe: Recipe, dataset: Dataset) -> Dataset:
    """The data set with what cuts its captions into tokens, made from the training captions or the model's own."""
    assert recipe.text is not None
    own = None
    if recipe.model.name.startswith("transformers/"):
        from pellucid.models.captioners import captioner_folder

        own = captioner_folder(recipe.model.name, Path(recipe.model.weights) if recipe.model.weights else None)
    texts = (text for texts in _captions(dataset.splits["train"]).texts for text in texts)
    tokenizer = build_tokenizer(recipe.text, texts, own=own)
    table = TokenTable(_captions(dataset.splits["train"]), tokenizer)
    most = 1 if recipe.text.captions == "one" else int(np.diff(table.first).max())
    tokenizer.vocabulary = replace(tokenizer.vocabulary, unknown=tokenizer.unknown, captions=most, longest=int(np.diff(table.ends).max()))
    return replace(dataset, tokenizer=tokenizer)


def mirror_notes(recipe: Recipe, dataset: Dataset) -> list[str]:
    """What must be said of pictures that are mirrored or turned under captions that name sides; DataError where many do."""
    a, notes = recipe.augment, list[str]()
    turned = ["rotation"] if a.rotation > MOST_TURNED else []
    for flip, vertical, words in (("horizontal_flip", False, "left, right …"), ("vertical_flip", True, "above, below …")):
        changed = [*([flip] if getattr(a, flip) else []), *turned]
        if not changed:
            continue
        named, total = mirrored_words((text for texts in _captions(dataset.splits["train"]).texts for text in texts), vertical=vertical)
        line = f"augment.{changed[0]} changes sides, and {named:,} of {total:,} training captions name one ({words})"
        if named > MOST_MIRRORED * total:
            raise DataError(f"{line}: they would be wrong for the changed pictures; leave {' and '.join(changed)} out")
        if named:
            notes.append(f"{line}: these are wrong for the pictures that were changed")
    return notes


# ── models and generation ─────────────────────────────────────────────────────────────────────────────────────


def generation_of(recipe: Recipe, vocabulary: Vocabulary | None) -> Generation:
    """How a recipe's captions are found. vocabulary: that of the run."""
    from pellucid.models.captioner import Generation

    assert recipe.generation is not None
    assert recipe.text is not None
    assert vocabulary is not None
    return Generation(max_length=recipe.text.max_length, suppressed=suppressed(vocabulary), **recipe.generation.model_dump())


def suppressed(vocabulary: Vocabulary) -> tuple[int, ...]:
    """The tokens that no caption that is found has: a caption that says [UNK] says nothing."""
    spoken = (vocabulary.start, vocabulary.end, vocabulary.pad)  # of some tokenisers the same token: a caption without it would never end
    return () if vocabulary.unknown is None or vocabulary.unknown in spoken else (vocabulary.unknown,)


def describe(generation: Generation) -> str:
    """A sentence part: how captions are found."""
    how = "greedily" if generation.num_beams == 1 else f"by {generation.num_beams} beams, length penalty {generation.length_penalty:g}"
    how += f", no {generation.no_repeat_ngram_size}-gram twice" if generation.no_repeat_ngram_size else ""
    how += f", at least {generation.min_length} tokens" if generation.min_length else ""
    how += ", without the sign for unknown words" if generation.suppressed else ""
    return f"captions found {how}, at most {generation.max_length} tokens"


def build(recipe: Recipe, vocabulary: Vocabulary, *, start_weights: bool = True) -> tuple[Built, WeightsReport | None]:
    """The recipe's captioner; `start_weights=False` leaves it at its initialisation."""
    from pellucid.models.captioners import build_captioner

    m = recipe.model
    built = build_captioner(
        m.name, vocabulary=vocabulary, encoder=m.encoder, encoder_stride=m.encoder_stride, decoder=m.decoder.model_dump() if m.decoder else None,
        pretrained=m.pretrained, options=m.options, image_size=recipe.data.size, weights=Path(m.weights) if m.weights else None,
        backbone_weights=Path(m.backbone_weights) if m.backbone_weights else None, start_weights=start_weights,
    )  # fmt: skip
    cast("Captioner", built.module).typical = vocabulary.captions, vocabulary.longest or vocabulary.max_length
    return built, None


# ── new images ────────────────────────────────────────────────────────────────────────────────────────────────


@torch.inference_mode()
def predict(run: Run, module: nn.Module, images: Any, *, runtime: Runtime) -> list[CaptionPrediction]:
    """Captions by the run's model for paths, folders (searched for images) and PIL images, in the given order."""
    captioner = cast("Captioner", module.eval())
    named, recipe, data, tokenizer = opened(images), run.recipe, run.data, tokenizer_of(run)
    generation, found, size = generation_of(recipe, data.vocabulary), [], run.record.evaluation_batch_size
    for start in range(0, len(named), size):
        chunk = named[start : start + size]
        arrays = [resize(load(), recipe.data.size, recipe.data.fit, recipe.data.resize_size, recipe.data.interpolation) for _, load in chunk]
        inputs = evaluate_view(pack_images(arrays).to(runtime.device), size=recipe.data.size, mean=data.mean, std=data.std)
        with runtime.autocast():
            generated = captioner.generate(inputs.to(memory_format=runtime.memory_format), generation)
        for (name, _), tokens, score in zip(chunk, generated.tokens.tolist(), generated.scores.tolist(), strict=True):
            found.append(CaptionPrediction(name, tokenizer.decode(tokens), tuple(token for token in tokens if token >= 0), score))
    return found


def tokenizer_of(run: Run) -> CaptionTokenizer:
    """The tokeniser of a run."""
    vocabulary = run.data.vocabulary
    assert vocabulary is not None
    return load_tokenizer(run.tokenizer_file, vocabulary)
