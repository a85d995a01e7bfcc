"""A captioner: an unedited model of transformers that describes pictures, behind one way in.

Three kinds, told apart by their class: a vision encoder-decoder (VisionEncoderDecoderModel: any encoder and decoder of transformers, and our own), BLIP
(Li et al. 2022) and GIT (Wang et al. 2022). The first two look at the picture through cross-attention; GIT puts the picture's tokens before the words and
looks at both through self-attention. `encode` runs the part that sees the picture once, `decode` gives the logits of as many captions as it has. Captions
are found by transformers' own generate(). Nothing here shifts labels or masks a loss: logits at position t are about token t + 1, and what is behind the end
of a caption is the caller's to leave out. transformers, which takes seconds to import, is imported where it is used.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pellucid.errors import UsageError

_MOST_PREFIX = 16  # tokens that may stand before the patches: class, distillation, registers


class Vocabulary(Protocol):
    """The tokens that a captioner speaks in. size: how many; start: what a caption begins after, end: what ends it, pad: what stands behind the end, all
    numbers of tokens. max_length: most tokens of a caption, the end among them.
    """

    @property
    def size(self) -> int: ...
    @property
    def start(self) -> int: ...
    @property
    def end(self) -> int: ...
    @property
    def pad(self) -> int: ...
    @property
    def max_length(self) -> int: ...


@dataclass(frozen=True)
class Generation:
    """How a caption is found. max_length: most tokens, the end among them. num_beams: 1 is greedy. length_penalty: of beams, the log probability is divided by
    the length to this power. no_repeat_ngram_size: no run of so many tokens occurs twice; 0: any may. min_length: fewest tokens before the end.
    suppressed: tokens that are never taken.
    """

    max_length: int
    num_beams: int = 1
    length_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    min_length: int = 0
    suppressed: tuple[int, ...] = ()


@dataclass(frozen=True)
class Generated:
    """Captions of B pictures. tokens: (B, max_length) int64, the end included, -1 behind it, never the start. scores: (B,) float64, log probability in nats
    summed over the tokens, from one pass over the whole caption; no penalty is in it. beam_indices: (B, max_length) int64, -1 behind the end: the row among
    the B * num_beams of a decoding step that gave each token; None for greedy. notes: what transformers logged meanwhile.
    """

    tokens: Tensor
    scores: Tensor
    beam_indices: Tensor | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layout:
    """How the picture's tokens lie: `prefix` of them before the patches (class token, registers), then the cells of `grid` (rows, columns), row by row."""

    grid: tuple[int, int]
    prefix: int

    @property
    def keys(self) -> slice:
        """Where the grid's cells stand among the keys of an attention that looks at the picture; of GIT's too, whose keys begin with the picture."""
        return slice(self.prefix, self.tokens)

    @property
    def tokens(self) -> int:
        """Tokens of a picture."""
        return self.prefix + self.grid[0] * self.grid[1]


class Captioner(nn.Module):
    """Words for pictures: `model` of transformers, speaking in a vocabulary whose `size`, `start`, `end`, `pad` and `max_length` stand here too.

    attends: whether its decoder looks at the picture by "cross" or by "self" attention. decoder, eye: paths in this module of the part whose attentions
    look, and of the part that sees the picture. typical: captions of a picture in training, and tokens of a caption, for whoever counts memory.
    Raises UsageError for a model of another kind, and for captions that are longer than its positions.
    """

    def __init__(self, model: nn.Module, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.model: Any = model
        self.size, self.start, self.end, self.pad = vocabulary.size, vocabulary.start, vocabulary.end, vocabulary.pad
        self.max_length = vocabulary.max_length
        self.typical: tuple[int, int] = (1, vocabulary.max_length)
        self._way = _way(model)
        self.attends, self.decoder, self.eye = self._way.attends, f"model.{self._way.decoder}", f"model.{self._way.eye}"
        self._layouts: dict[tuple[int, int], Layout] = {}
        self.check_length(vocabulary.max_length)

    def forward(self, images: Tensor, tokens: Tensor, owners: Tensor | None = None) -> Tensor:
        """Logits (R, T, V) float, [:, t] about token t + 1, of images (B, 3, H, W) and tokens (R, T) int64 that begin with the start token.

        owners: (R,) int64, the image of each row; None: row i has image i, and R is B.
        """
        return self.decode(self.encode(images), tokens, owners)

    def encode(self, images: Tensor) -> Tensor:
        """What the decoder looks at (B, K, D): the picture's tokens."""
        return self._way.encode(self.model, images)

    def decode(self, memory: Tensor, tokens: Tensor, owners: Tensor | None = None) -> Tensor:
        """Logits of `forward` from what `encode` gave. No token looks at those behind it, so that padding behind an end needs no mask."""
        if owners is not None:
            memory = memory.index_select(0, owners)
        assert len(memory) == len(tokens), f"{len(tokens)} rows of tokens for {len(memory)} images"
        logits = self._way.decode(self.model, memory, tokens)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    @torch.no_grad()
    def generate(self, images: Tensor, how: Generation, memory: Tensor | None = None) -> Generated:
        """Captions of images (B, 3, H, W), found by transformers' generate() under these settings and no others. In eval mode.

        Settings that were published with the model (beams, lengths, suppressed tokens) do not count. memory: what `encode` gave of these images, where that is
        known.
        """
        from pellucid.models.huggingface import collected

        assert not self.training, "dropout would draw other captions each time"
        self.check_length(how.max_length)
        memory, notes = self.encode(images) if memory is None else memory, list[str]()
        with collected(notes), self._way.generating(self.model):
            found = self._way.generate(self.model, images, memory, self._settings(how))
        sequences = found.sequences[:, 1:]
        kept = torch.cat([torch.ones_like(sequences[:, :1]), (sequences[:, :-1] != self.end).cumprod(1)], dim=1) > 0
        tokens = _to_length(sequences.masked_fill(~kept, -1), how.max_length)
        beams = getattr(found, "beam_indices", None)
        if beams is not None:
            beams = _to_length(beams.to(torch.int64).masked_fill(~kept, -1), how.max_length)
        return Generated(tokens, self._scores(memory, tokens), beams, tuple(dict.fromkeys(notes)))

    def _settings(self, how: Generation) -> Any:
        """A GenerationConfig of transformers, whose lengths include the start token."""
        from transformers import GenerationConfig

        chosen: dict[str, Any] = {"length_penalty": how.length_penalty, "early_stopping": False} if how.num_beams > 1 else {}
        chosen |= {"no_repeat_ngram_size": how.no_repeat_ngram_size} if how.no_repeat_ngram_size else {}
        chosen |= {"min_length": how.min_length + 1} if how.min_length else {}
        chosen |= {"suppress_tokens": list(how.suppressed)} if how.suppressed else {}
        return GenerationConfig(
            max_length=how.max_length + 1, num_beams=how.num_beams, do_sample=False, return_dict_in_generate=True, output_scores=how.num_beams > 1,
            decoder_start_token_id=self.start, bos_token_id=self.start, eos_token_id=self.end, pad_token_id=self.pad,
            **chosen,
        )  # fmt: skip

    def _scores(self, memory: Tensor, tokens: Tensor) -> Tensor:
        """(B,) float64: log probability of tokens (B, T), -1 behind the end, summed. One picture after the other: a vocabulary is wide."""
        inputs = torch.cat([torch.full_like(tokens[:, :1], self.start), tokens[:, :-1]], dim=1)
        logits = self.decode(memory, inputs.masked_fill(inputs < 0, self.pad))
        sums = []
        for row, found in zip(logits, tokens, strict=True):
            length = int((found >= 0).sum())
            sums.append(row[:length].double().log_softmax(-1).gather(1, found[:length, None]).sum())
        return torch.stack(sums)

    def layout(self, image_size: tuple[int, int]) -> Layout:
        """How the tokens of a picture of (height, width) lie; found once for each size, by one picture of zeros.

        Raises UsageError for a size that the model cannot take, and for an encoder whose tokens lie on no grid that is known.
        """
        if image_size not in self._layouts:
            self._layouts[image_size] = self._found_layout(image_size)
        return self._layouts[image_size]

    def grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """(rows, columns) of the grid that the decoder looks at, for images of (height, width)."""
        return self.layout(image_size).grid

    @torch.no_grad()
    def _found_layout(self, image_size: tuple[int, int]) -> Layout:
        parameter = next(self.parameters())
        training = {module: module.training for module in self.modules()}
        self.eval()
        try:
            return self._way.layout(self.model, torch.zeros((1, 3, *image_size), device=parameter.device, dtype=parameter.dtype))
        except (RuntimeError, AssertionError, ValueError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            own = _own_size(self.get_submodule(self.eye).config)
            its = f" Its own size is {own[0]}x{own[1]}." if own not in (None, image_size) and own else ""
            raise UsageError(
                f"{type(self.model).__name__} cannot take images of {image_size[0]}x{image_size[1]} pixels (height x width): "
                f"{' '.join(str(error).split())[:300]}.{its}"
            ) from error
        finally:
            for module, flag in training.items():
                module.training = flag

    def check_length(self, max_length: int) -> None:
        """UsageError where captions of so many tokens have no positions in the decoder."""
        config = self.get_submodule(self.decoder).config
        most = next((getattr(config, key) for key in ("max_position_embeddings", "n_positions") if isinstance(getattr(config, key, None), int)), None)
        if most is not None and max_length > most:
            raise UsageError(f"text.max_length: expected at most {most} tokens, the positions of {type(self.model).__name__}'s decoder; got {max_length}.")


def _size(images: Tensor) -> tuple[int, int]:
    return int(images.shape[-2]), int(images.shape[-1])


def _to_length(found: Tensor, length: int) -> Tensor:
    """(B, T) with -1 behind, up to (B, length)."""
    return nn.functional.pad(found, (0, length - found.shape[1]), value=-1)


# ── the three kinds ──
class _Way(Protocol):
    """What differs between the kinds. Paths are those within the model of transformers."""

    attends: str
    decoder: str
    eye: str

    def encode(self, model: Any, images: Tensor) -> Tensor: ...

    def decode(self, model: Any, memory: Tensor, tokens: Tensor) -> Tensor: ...

    def generate(self, model: Any, images: Tensor, memory: Tensor, settings: Any) -> Any: ...

    def generating(self, model: Any) -> Any:
        """A context in which the model generates under no settings but those that are given."""
        ...

    def layout(self, model: Any, images: Tensor) -> Layout: ...


class _EncoderDecoder:
    attends, decoder, eye = "cross", "decoder", "encoder"

    def encode(self, model: Any, images: Tensor) -> Tensor:
        found: Tensor = model.encoder(pixel_values=images, **_interpolated(model.encoder, images))[0]
        return found.flatten(2).mT if found.ndim == 4 else found  # B, gh·gw, C of convolutional encoders

    def decode(self, model: Any, memory: Tensor, tokens: Tensor) -> Tensor:
        # Words as vectors under a whole mask: from numbers of tokens and without one, decoders would look for padding, warn, and read values off the device.
        words = model.get_input_embeddings()(tokens)
        seen = _seen(memory)
        logits: Tensor = model(encoder_outputs=seen, decoder_inputs_embeds=words, decoder_attention_mask=_causal(0, words), use_cache=False).logits
        return logits

    def generate(self, model: Any, images: Tensor, memory: Tensor, settings: Any) -> Any:
        return model.generate(encoder_outputs=_seen(memory), generation_config=settings)

    def generating(self, model: Any) -> Any:
        return _without_published(model)

    def layout(self, model: Any, images: Tensor) -> Layout:
        if hasattr(model.encoder, "features"):  # our own
            height, width = model.encoder.features(images).shape[1:3]
            return Layout((height, width), 0)
        found = model.encoder(pixel_values=images, **_interpolated(model.encoder, images))[0]
        return Layout((found.shape[2], found.shape[3]), 0) if found.ndim == 4 else _by_patches(model.encoder, images, found.shape[1])


class _Blip:
    attends, decoder, eye = "cross", "text_decoder", "vision_model"

    def encode(self, model: Any, images: Tensor) -> Tensor:
        found: Tensor = model.vision_model(pixel_values=images, **_interpolated(model.vision_model, images))[0]
        return found

    def decode(self, model: Any, memory: Tensor, tokens: Tensor) -> Tensor:
        logits: Tensor = model.text_decoder(input_ids=tokens, encoder_hidden_states=memory, use_cache=False).logits
        return logits

    def generate(self, model: Any, images: Tensor, memory: Tensor, settings: Any) -> Any:
        """What BlipForConditionalGeneration.generate does with what it has encoded, the start being ours."""
        start = torch.full((len(memory), 1), settings.bos_token_id, device=memory.device)  # type: ignore[arg-type]
        seen = torch.ones(memory.shape[:2], dtype=torch.int64, device=memory.device)
        return model.text_decoder.generate(
            input_ids=start, attention_mask=torch.ones_like(start), encoder_hidden_states=memory, encoder_attention_mask=seen, generation_config=settings
        )

    def generating(self, model: Any) -> Any:
        return _without_published(model.text_decoder)

    def layout(self, model: Any, images: Tensor) -> Layout:
        return _by_patches(model.vision_model, images, self.encode(model, images).shape[1])


class _Git:
    attends, decoder, eye = "self", "git.encoder", "git.image_encoder"

    def encode(self, model: Any, images: Tensor) -> Tensor:
        seen = model.git.image_encoder(images, **_interpolated(model.git.image_encoder, images)).last_hidden_state
        projected: Tensor = model.git.visual_projection(seen)
        return projected

    def decode(self, model: Any, memory: Tensor, tokens: Tensor) -> Tensor:
        """GitForCausalLM's own pass with the picture already encoded, which its forward offers no way to hand in."""
        count = memory.shape[1]
        embedded = torch.cat([memory, model.git.embeddings(input_ids=tokens)], dim=1)  # R, K + T, D
        hidden = model.git.encoder(embedded, attention_mask=_causal(count, embedded), past_key_values=None, use_cache=False)
        logits: Tensor = model.output(hidden.last_hidden_state[:, count:])
        return logits

    def generate(self, model: Any, images: Tensor, memory: Tensor, settings: Any) -> Any:
        start = torch.full((len(images), 1), settings.bos_token_id, device=images.device)  # type: ignore[arg-type]
        return model.generate(
            input_ids=start, attention_mask=torch.ones_like(start), pixel_values=images, generation_config=settings,
            **_interpolated(model.git.image_encoder, images),
        )  # fmt: skip

    def generating(self, model: Any) -> Any:
        return _without_published(model)

    def layout(self, model: Any, images: Tensor) -> Layout:
        return _by_patches(model.git.image_encoder, images, self.encode(model, images).shape[1])


_WAYS: dict[str, _Way] = {  # by the model's class
    "VisionEncoderDecoderModel": _EncoderDecoder(),
    "BlipForConditionalGeneration": _Blip(),
    "GitForCausalLM": _Git(),
}
KINDS = {"vision-encoder-decoder": "VisionEncoderDecoderModel", "blip": "BlipForConditionalGeneration", "git": "GitForCausalLM"}  # by model_type


def _way(model: nn.Module) -> _Way:
    found = next((_WAYS[kind.__name__] for kind in type(model).__mro__ if kind.__name__ in _WAYS), None)
    if found is None:
        raise UsageError(f"expected a captioner of transformers: a vision encoder-decoder, BLIP or GIT ({', '.join(_WAYS)}); got {type(model).__name__}.")
    return found


def _seen(memory: Tensor) -> Any:
    """Memory as transformers hands it from encoder to decoder."""
    from transformers.modeling_outputs import BaseModelOutput

    return BaseModelOutput(last_hidden_state=memory)  # type: ignore[arg-type]


def _causal(count: int, embedded: Tensor) -> Tensor:
    """(R, 1, N, N), added to the scores of R rows of N tokens: each sees those before it; the first `count`, a picture's, see each other."""
    rows, length = embedded.shape[:2]
    seen = torch.ones(length, length, dtype=torch.bool, device=embedded.device).tril()
    seen[:count, :count] = True
    mask = torch.zeros(length, length, dtype=embedded.dtype, device=embedded.device).masked_fill(~seen, torch.finfo(embedded.dtype).min)
    return mask.expand(rows, 1, length, length)


def _interpolated(eye: nn.Module, images: Tensor) -> dict[str, bool]:
    """The argument that resizes position embeddings, where the images are not of the model's own size and it offers one."""
    offered = "interpolate_pos_encoding" in inspect.signature(eye.forward).parameters
    return {"interpolate_pos_encoding": True} if offered and _own_size(eye.config) not in (None, _size(images)) else {}


def _own_size(config: Any) -> tuple[int, int] | None:
    from pellucid.models.huggingface import own_size

    return own_size(config)


def _by_patches(eye: nn.Module, images: Tensor, tokens: int) -> Layout:
    """The layout of so many tokens by the encoder's patch size, halved from stage to stage; ValueError where they fit no grid, or two.

    Encoders with stages pad what they cut, and have no token before the patches; the others have both ways.
    """
    stated, stages = getattr(eye.config, "patch_size", None), _stages(eye.config)
    sides = [stated, stated] if isinstance(stated, int) else list(stated or ())
    strides = [side * 2 ** max(stages - 1, 0) for side in sides] if len(sides) == 2 else []
    found = set()
    for up in ((1,) if stages else (0, 1)) if strides else ():
        rows, columns = ((length + up * (stride - 1)) // stride for length, stride in zip(_size(images), strides, strict=True))
        if min(rows, columns) > 0 and 0 <= tokens - rows * columns <= (0 if stages else _MOST_PREFIX):
            found.add(Layout((rows, columns), tokens - rows * columns))
    if len(found) > 1:
        either = " or ".join(f"{grid.grid[0]}x{grid.grid[1]} behind {grid.prefix} others" for grid in sorted(found, key=lambda grid: grid.prefix))
        raise ValueError(f"the {tokens} tokens of {type(eye).__name__} may lie as {either}: give a size that is a multiple of its patch size {stated}")
    if not found:
        raise ValueError(f"the {tokens} tokens of {type(eye).__name__} lie on no grid that its patch size {stated} gives")
    return found.pop()


def _stages(config: Any) -> int:
    """Stages of an encoder, each but the first of half the rows and columns; 0 of one that keeps its grid."""
    widths = next((found for key in ("depths", "hidden_sizes") if isinstance(found := getattr(config, key, None), (list, tuple))), None)
    count = len(widths) if widths is not None else getattr(config, "num_stages", 0)
    return count if isinstance(count, int) else 0


@contextmanager
def _without_published(model: Any) -> Iterator[None]:
    """Settings that a model was published with fill in what a caller leaves out; within the block it has none."""
    from transformers import GenerationConfig

    before = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = before
