"""What `verify` needs of a captioner's maps of words: pictures read anew, and the attention of every output token by transformers itself.

One pass over each caption, one picture at a time, in which transformers returns the attention (output_attentions, "eager"). Words of BLIP and of vision
encoder-decoders look at the picture by cross-attention, those of GIT by self-attention: of each row the keys that are patches. Shares no line with
`inside.words`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray
from torch import Tensor

from pellucid.data.dataset import Dataset, Split, Thing
from pellucid.data.images import decode, resize, view_mask
from pellucid.files import bytes_hash
from pellucid.models.captioner import Captioner
from pellucid.recipe import Recipe
from pellucid.run import Run
from pellucid.runtime import DECIDES_BITS, Runtime, describe
from pellucid.schema.captioning import WordsSection
from pellucid.verify_inside import scores
from pellucid.verify_inside.maps import as_inputs, with_random_weights
from pellucid.word_findings import FoundWord, WordsFindings

Progress = Callable[[str, int, int], None]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

LOOKED_AT = ("val", "test", "train")  # the first of these splits that is there
SAME_MACHINE, OTHER_MACHINE = 1e-4, 1e-2  # of a map, whose values are shares: float32 by fused and by plain kernels, on one class of device and on another
AGREES = 1e-5  # of the agreement of steps with the whole pass, which is the rounding of float32


@dataclass(frozen=True)
class Kept:
    """The words of a run with their arrays, read once."""

    run: Run
    recipe: Recipe
    findings: WordsFindings
    arrays: dict[str, NDArray[np.generic]]

    @property
    def section(self) -> WordsSection:
        assert self.recipe.words is not None, "a captioning always says what a map of a word is"
        return self.recipe.words

    @property
    def split(self) -> str:
        """The split whose pictures are looked at."""
        return next(name for name in LOOKED_AT if name in self.run.data.splits)

    def floats(self, key: str, shape: tuple[int, ...]) -> Floats:
        """An array of this shape, finite and at least 0, in float64. ValueError for anything else."""
        array = self.arrays.get(key)
        if array is None:
            raise ValueError(f"{key} is missing")
        values = array.astype(np.float64) if array.dtype.kind == "f" else np.full(1, math.nan)
        if values.shape != shape or not np.isfinite(values).all() or (values < 0).any():
            raise ValueError(f"{key}: expected finite numbers of at least 0 in {shape}, got {array.dtype} in {array.shape}")
        return values


@dataclass(frozen=True)
class Asked:
    """A picture that the recipe asks for. row: of the split, None of a photograph that is none of it."""

    name: str
    row: int | None
    pixels: NDArray[np.uint8]


@dataclass(frozen=True)
class Looked:
    """The attention of every output token of a caption on the patches. maps: (L, h, T, gh, gw) float64."""

    maps: Floats

    def each(self) -> Floats:
        """(L, T, gh, gw): heads averaged."""
        return np.asarray(self.maps.mean(axis=1))

    def chosen(self, layers: Sequence[int], heads: Sequence[int] | str) -> Floats:
        """(T, gh, gw): the mean of some layers and heads."""
        columns = list(range(self.maps.shape[1])) if isinstance(heads, str) else list(heads)
        return np.asarray(np.mean([self.maps[layer, head] for layer in layers for head in columns], axis=0))


@dataclass(frozen=True)
class Anew:
    """A run's captioner with the pictures of the split that was looked at. same_bits: log probabilities made anew have the bits of the run."""

    kept: Kept
    dataset: Dataset
    module: Captioner
    runtime: Runtime
    progress: Progress | None
    same_bits: bool = False

    @property
    def split(self) -> Split:
        return self.dataset.splits[self.kept.split]

    @cached_property
    def same(self) -> bool:
        """Whether maps made here are the run's up to rounding: by what the run says of its machine, or, whatever it says, because the bits are the same."""
        now, then = describe(self.runtime), self.kept.run.environment
        return self.same_bits or all(now[key] == then.get(key) for key in DECIDES_BITS)

    @property
    def near(self) -> float:
        """How far a map may be from the recorded one."""
        return SAME_MACHINE if self.same else OTHER_MACHINE

    @cached_property
    def plain(self) -> Captioner:
        return plain_copy(self.module)

    @cached_property
    def stranger(self) -> Captioner:
        """The same model with random weights."""
        made = with_random_weights(self.module, self.kept.recipe.seed)
        assert isinstance(made, Captioner)
        return plain_copy(made)

    @cached_property
    def asked(self) -> list[Asked]:
        """Photographs in the order of the recipe, then pictures evenly spread over the split, none twice, without those that a note leaves out."""
        found, split = [], self.split
        for name in self.kept.section.images:
            content = Path(name).read_bytes()
            rows = [row for row, known in enumerate(split.hashes) if known == bytes_hash(content)]
            found.append(Asked(name, rows[-1] if rows else None, np.asarray(decode(content, name))))
        there = [one.row for one in found]
        rows = [row for row in spread(len(split), self.kept.section.drawn) if row not in there]
        found += [Asked(split.names[row], row, np.asarray(split.open(row))) for row in rows]
        return [one for one in found if not self.kept.findings.left_out(one.name)]

    def inputs(self, pixels: Any) -> Tensor:
        """(1, 3, H, W) of a picture as the model gets it, cropped and normalised by torchvision."""
        d, data = self.kept.recipe.data, self.kept.run.data
        array = np.array(resize(pixels, d.size, d.fit, d.resize_size, d.interpolation))
        return as_inputs(self.kept.recipe, [array], data.mean, data.std).to(self.runtime.device)

    def things(self, row: int) -> list[Thing]:
        captions = self.split.captions
        return captions.things(row) if captions is not None and captions.things is not None else []

    def target(self, mask: Bools, grid: tuple[int, int]) -> tuple[Bools, Bools]:
        """(target, valid), both (gh, gw), of a mask of the whole picture, in the model's view."""
        d = self.kept.recipe.data
        return scores.target_of(view_mask(mask.astype(np.uint8), d.size, d.fit, d.resize_size), grid)

    def tell(self, what: str, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(what, done, total)


def spread(n: int, most: int) -> list[int]:
    """At most `most` rows of n, evenly apart, from the first on."""
    return [math.floor(i * n / most) for i in range(most)] if most < n else list(range(n))


def plain_copy(module: Captioner) -> Captioner:
    """A copy in eval mode whose decoder writes out its attention, where its kind has another way too."""
    plain = copy.deepcopy(module).eval()
    choose = getattr(plain.get_submodule(plain.decoder), "set_attn_implementation", None)
    if callable(choose):
        choose("eager")
    return plain


@torch.no_grad()
def looked(plain: Captioner, image: Tensor, tokens: Sequence[int]) -> Looked:
    """Where a captioner looks for each of some output tokens, by one pass over the caption in which transformers returns the attention. image: (1, 3, H, W)."""
    layout = plain.layout((image.shape[-2], image.shape[-1]))
    weights = [w[0, :, -len(tokens) :, layout.keys] for w in _attentions(plain, image, tokens)]  # of GIT the rows begin with the picture too
    patches = torch.stack(weights).double().cpu().numpy()  # L, h, T, gh * gw
    return Looked(patches.reshape(*patches.shape[:-1], *layout.grid))


def _attentions(plain: Captioner, image: Tensor, tokens: Sequence[int], memory: Tensor | None = None) -> tuple[Tensor, ...]:
    """(1, h, rows, keys) of each layer that looks at the picture, as transformers returns it. memory: the encoded picture, where it is known."""
    read, model = torch.tensor([[plain.start, *tokens[:-1]]], device=image.device), plain.model
    if plain.attends == "self":  # GIT: the keys begin with the picture
        ids = {"interpolate_pos_encoding": True} if _other_size(plain, image) else {}
        return tuple(model(input_ids=read, pixel_values=image, output_attentions=True, use_cache=False, **ids).attentions)
    seen = plain.encode(image) if memory is None else memory
    if hasattr(model, "text_decoder"):
        return tuple(model.text_decoder(input_ids=read, encoder_hidden_states=seen, output_attentions=True, use_cache=False).cross_attentions)
    return tuple(model(encoder_outputs=(seen,), decoder_input_ids=read, output_attentions=True, use_cache=False).cross_attentions)


@torch.no_grad()
def agreement_of(plain: Captioner, image: Tensor, tokens: Sequence[int]) -> float:
    """The largest difference of the attention of a step, which reads no token but those before its own, from that of the pass over the whole caption."""
    keys = plain.layout((image.shape[-2], image.shape[-1])).tokens
    memory = plain.encode(image) if plain.attends == "cross" else None
    whole = [w[0, :, -len(tokens) :, :keys] for w in _attentions(plain, image, tokens, memory)]
    largest = 0.0
    for t in range(len(tokens)):
        step = [w[0, :, -1, :keys] for w in _attentions(plain, image, tokens[: t + 1], memory)]
        largest = max(largest, *(float((one - of[:, t]).abs().max()) for one, of in zip(step, whole, strict=True)))
    return largest


@torch.no_grad()
def paths_of(plain: Captioner, size: tuple[int, int]) -> list[str]:
    """The paths of the attentions that look at a picture of (height, width), in order: of each the innermost module that gives it out."""
    given: list[tuple[str, Tensor]] = []

    def seen(name: str) -> Callable[[Any, Any, Any], None]:
        return lambda module, inputs, output: given.extend((name, x) for x in (output if isinstance(output, tuple) else ()) if isinstance(x, Tensor))

    hooks = [module.register_forward_hook(seen(name)) for name, module in plain.named_modules()]
    try:
        found = _attentions(plain, torch.zeros((1, 3, *size), device=next(plain.parameters()).device), [plain.end])
    finally:
        for hook in hooks:
            hook.remove()
    names = [next((name for name, x in given if x is weights), "no module") for weights in found]  # an inner module ends before those around it
    return [name if (k := names[:i].count(name)) == 0 else f"{name} ({k})" for i, name in enumerate(names)]


def _other_size(plain: Captioner, image: Tensor) -> bool:
    """Whether a picture has another size than the model's own."""
    eye: Any = plain.get_submodule(plain.eye)
    own = eye.config.image_size
    return (own, own) != tuple(image.shape[-2:]) if isinstance(own, int) else tuple(own) != tuple(image.shape[-2:])


def picture_of(pixels: NDArray[np.uint8]) -> Any:
    """A picture of (h, w, 3) uint8."""
    return PIL.Image.fromarray(pixels)


def of_words(maps: Floats, words: Sequence[FoundWord], pieces: str) -> Floats:
    """(…, W, gh, gw): of (…, T, gh, gw) maps of tokens the mean or the sum over the pieces of each word."""
    found = []
    for word in words:
        parts = [maps[..., t, :, :] for t in range(*word.tokens)]
        total = sum(parts[1:], parts[0])
        found.append(total / len(parts) if pieces == "mean" else total)
    return np.stack(found, axis=-3) if found else np.zeros((*maps.shape[:-3], 0, *maps.shape[-2:]))
