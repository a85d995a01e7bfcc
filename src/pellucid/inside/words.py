"""Where a captioner looked for each word: the attention of the decoding step that gave it, over the grid of its picture.

Step s gives output token s, so the map of token s is the last query row of pass s of the decoder, whether the pass holds one token (with a cache) or the
whole prefix (without). The first pass reads the whole prompt, however long it is, and gives token 0. Of several beams a caption's tokens came from
changing rows: `beam_indices` say from which (transformers' `generate`).

Two kinds of decoders look at a picture: by cross-attention, whose keys are the picture (vision encoder-decoders, BLIP), and by self-attention over the
picture's tokens and the words behind them (GIT, 2205.14100). Tokens before the patches, a class token or registers, lie on no place: they are left
out of a map and their share is kept beside it.

Step, row and beam can each be taken wrongly and still give a pretty picture. So every map is held against one pass over the finished caption, in which
the row of each token is known without counting steps; a map that differs is not handed out. A map shows what the step read. It does not say why the
model chose the word, and its query is the token before the word: the step had not read the word itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pellucid.errors import UsageError
from pellucid.inside.attention import Record, Recording, record
from pellucid.inside.attribution import examining
from pellucid.inside.geometry import Geometry, prefix_tokens
from pellucid.word_findings import DIFFERS

if TYPE_CHECKING:  # a captioner is used and not made here
    from pellucid.models.captioner import Captioner, Generation

Floats = NDArray[np.float32]
Spoken = tuple[Tensor, Tensor | None]
Span = tuple[int, int]
Layers = Literal["mean", "last"] | Sequence[int]
Heads = Literal["mean"] | Sequence[int]

PICTURE_FIRST = ("git",)  # model types whose decoder reads the picture's tokens and then the words, all by self-attention


@dataclass(frozen=True)
class Site:
    """One attention of a decoder that looks at the picture. module: its path; index: of several attentions in one pass of it.

    picture: how the keys that are the picture lie; they are the first of all keys.
    """

    module: str
    index: int
    picture: Geometry

    @property
    def name(self) -> str:
        return self.module if not self.index else f"{self.module} ({self.index})"


@dataclass(frozen=True)
class WordMaps:
    """The attention of L layers and h heads for T output tokens of B captions, on the CPU; 0 behind the end of a caption.

    tokens: (B, T) int64, -1 behind the end. maps: (B, L, h, T, gh, gw) float32, >= 0, over the patches; sums to `picture` minus `prefix`.
    picture: (B, L, h, T) float32, attention on the picture, 1 in cross-attention. prefix: (B, L, h, T) float32, its part on the tokens before the patches.
    sites: the L attentions. agreement: (B,) float64, the largest difference of any weight from one pass over the finished caption; NaN where it is that
    pass.
    """

    tokens: NDArray[np.int64]
    maps: Floats
    picture: Floats
    prefix: Floats
    sites: tuple[Site, ...]
    agreement: NDArray[np.float64]

    @property
    def layers(self) -> list[str]:
        """Paths of the attentions, in the order in which they run."""
        return [site.name for site in self.sites]

    @property
    def grid(self) -> tuple[int, int]:
        """(gh, gw), rows and columns of patches."""
        return self.maps.shape[-2], self.maps.shape[-1]

    def length(self, b: int) -> int:
        """How many tokens caption b has, its end among them."""
        return int((self.tokens[b] >= 0).sum())

    def of(self, b: int, layers: Layers = "mean", heads: Heads = "mean") -> Floats:
        """(length, gh, gw): the maps of caption b, the mean of the chosen layers and heads."""
        return chosen(self.maps[b], layers, heads)[: self.length(b)]

    def share(self, b: int, layers: Layers = "mean", heads: Heads = "mean") -> tuple[Floats, Floats]:
        """((length,) attention on the picture, (length,) the part of it on tokens before the patches) of caption b, means as `of` takes them."""
        picture, prefix = (chosen(part[b], layers, heads)[: self.length(b)] for part in (self.picture, self.prefix))
        return picture, prefix


# ── looking ───────────────────────────────────────────────────────────────────────────────────────────────────


def caption_maps(captioner: Captioner, images: Tensor, generation: Generation, *, differs: float = DIFFERS) -> WordMaps:
    """The captions of (B, 3, H, W) normalised images and where each token of them was looked for. Errors as of `word_maps`."""

    def generate() -> Spoken:
        found = captioner.generate(images, generation)
        return found.tokens, found.beam_indices

    picture = picture_keys(captioner, images)
    return word_maps(captioner, generate, _forced(captioner, images), picture=picture, decoder=captioner.decoder, differs=differs)


def given_maps(captioner: Captioner, images: Tensor, tokens: Tensor | NDArray[np.int64]) -> WordMaps:
    """Where a captioner looks for each token of captions that are given: of (B, T) int64 output tokens, -1 behind the end.

    The captions of the trained model through one with random weights, or captions that a run keeps.
    """
    given = torch.as_tensor(tokens, device=images.device)
    return forced_maps(captioner, _forced(captioner, images), given, picture=picture_keys(captioner, images), decoder=captioner.decoder)


def _forced(captioner: Captioner, images: Tensor) -> Callable[[Tensor], Tensor]:
    """One pass over captions: the decoder reads the start and all tokens but the last, padding behind the end."""

    def run(tokens: Tensor) -> Tensor:
        read = torch.cat([torch.full_like(tokens[:, :1], captioner.start), tokens[:, :-1]], dim=1)
        logits: Tensor = captioner(images, read.masked_fill(read < 0, captioner.pad))
        return logits

    return run


def picture_keys(captioner: Captioner, images: Tensor) -> Geometry:
    """How the tokens of a picture lie among the keys of a captioner's decoder, as the captioner states it."""
    layout = captioner.layout((int(images.shape[-2]), int(images.shape[-1])))
    named = prefix_tokens(captioner)
    return Geometry(layout.tokens, layout.grid, named if len(named) == layout.prefix else ("unnamed",) * layout.prefix)


def word_maps(
    model: nn.Module,
    generate: Callable[[], Spoken],
    forced: Callable[[Tensor], Any],
    *,
    picture: Geometry | None = None,
    decoder: str = "",
    differs: float = DIFFERS,
    ignore: Sequence[str] = (),
) -> WordMaps:
    """The attention of each step of a generation, of any model: `generate` and `forced` run it, in eval mode and without gradient.

    generate(): captions of B pictures, (tokens, beam_indices): tokens (B, T) int64, output tokens alone, -1 behind the end; beam_indices (B, T) int64, which
    row of the batch gave each token, -1 behind the end, or None where row b is picture b. forced(tokens): one pass over prompt and tokens[:, :-1], -1 behind
    the end. picture: how the picture's keys lie; by default as the run shows. decoder: path of the part whose attentions count. ignore: patterns of attention
    modules that need not be seen, as of `record`. What comes back has as many tokens as the longest caption.

    Raises UsageError where no attention looks at the picture, where rows and pictures do not fit, and where a map differs by more than `differs` from
    that of the forced pass.
    """
    with examining(model) as plain, torch.no_grad():
        with record(plain, rows="last", ignore=ignore) as recording:
            tokens, beams = generate()
        _check_tokens(tokens, beams)
        tokens = _without_ends(tokens)
        sites = _sites(plain, recording, tokens.shape[1], picture, decoder)
        steps = [_of_steps(_passes(recording)[site.module, site.index], tokens, beams, site) for site in sites]
        whole = _of_whole(plain, forced, tokens, sites)
    agreement = np.zeros(len(tokens))
    for site, step, one in zip(sites, steps, whole, strict=True):
        differences = (step - one).abs().nan_to_num(nan=torch.inf).amax((1, 3)).masked_fill(tokens.cpu() < 0, 0.0)  # (B, T)
        _check_agreement(differences, site, tokens, differs)
        agreement = np.maximum(agreement, differences.amax(1).double().numpy())
    return _maps(tokens, steps, sites, agreement)


def forced_maps(
    model: nn.Module,
    forced: Callable[[Tensor], Any],
    tokens: Tensor,
    *,
    picture: Geometry | None = None,
    decoder: str = "",
    ignore: Sequence[str] = (),
) -> WordMaps:
    """The same of captions that are given: one pass to find the attentions, one over each caption. Arguments and errors as of `word_maps`."""
    _check_tokens(tokens, None)
    tokens = _without_ends(tokens)
    with examining(model) as plain, torch.no_grad():
        with record(plain, rows="last", ignore=ignore) as recording:
            forced(tokens)
        sites = _sites(plain, recording, 1, picture, decoder)
        whole = _of_whole(plain, forced, tokens, sites)
    return _maps(tokens, whole, sites, np.full(len(tokens), np.nan))


def _without_ends(tokens: Tensor) -> Tensor:
    """(B, length of the longest) tokens: without columns that are behind the end of every caption."""
    return tokens[:, : max(1, int((tokens >= 0).sum(1).max()))]


def _maps(tokens: Tensor, weights: Sequence[Tensor], sites: Sequence[Site], agreement: NDArray[np.float64]) -> WordMaps:
    """WordMaps of (B, h, T, K) attention over the picture's keys of each site."""
    _check_alike(weights, sites)
    there = (tokens.cpu() >= 0)[:, None, :, None]
    kept = [w.masked_fill(~there, 0.0) for w in weights]
    maps = torch.stack([site.picture.on_grid(w) for site, w in zip(sites, kept, strict=True)], dim=1)  # (B, L, h, T, gh, gw)
    picture = torch.stack([w.sum(-1) for w in kept], dim=1)
    prefix = torch.stack([w[..., : len(site.picture.prefix)].sum(-1) for site, w in zip(sites, kept, strict=True)], dim=1)
    return WordMaps(tokens.cpu().numpy(), maps.numpy(), picture.numpy(), prefix.numpy(), tuple(sites), agreement)


# ── which attention, which row ────────────────────────────────────────────────────────────────────────────────


def _passes(recording: Recording) -> dict[tuple[str, int], list[Record]]:
    """{(module, number of the attention in one of its passes): its records, pass by pass}."""
    found: dict[tuple[str, int], list[Record]] = {}
    for r in recording.records:
        found.setdefault((r.module, r.index), []).append(r)
    return found


def _sites(model: nn.Module, recording: Recording, steps: int, picture: Geometry | None, decoder: str) -> list[Site]:
    """The attentions of the decoder that looked at the picture in each of at least so many steps."""
    inside = {key: r for key, r in _passes(recording).items() if len(r) >= steps and (not decoder or key[0].startswith(f"{decoder}."))}
    cross = {key: records[0] for key, records in inside.items() if records[0].kind == "cross"}
    if cross:
        return [Site(*key, _picture(r, recording, picture)) for key, r in cross.items()]
    types = {getattr(getattr(module, "config", None), "model_type", None) for module in model.modules()}
    if types.isdisjoint(PICTURE_FIRST):
        named = ", ".join(recording.layers[:6])
        raise UsageError(
            f"expected a decoder that looks at a picture by cross-attention, or GIT; no attention does so in each of {steps} steps. Recorded: {named}."
        )
    seen = [r.geometry for r in recording.records if r.geometry.grid is not None]
    if picture is None and not seen:
        raise UsageError("expected GIT's image encoder to run with the first step, as it says where the picture's tokens lie; generate with the picture")
    first = picture or seen[-1]
    # A word reads the picture and at least itself; the image encoder's own attention has the picture's tokens alone.
    return [Site(*key, first) for key, records in inside.items() if records[0].kind == "self" and records[0].weights.shape[-1] > first.tokens]


def _picture(r: Record, recording: Recording, stated: Geometry | None) -> Geometry:
    """How the keys of a cross-attention lie: as stated, as convolutions say, or as the last attention of an encoder with as many tokens (Swin)."""
    keys, seen = r.weights.shape[-1], r.geometry
    if stated is not None:
        if stated.tokens != keys or (seen.grid is not None and (seen.grid, len(seen.prefix)) != (stated.grid, len(stated.prefix))):
            found = f"{seen.grid} behind {len(seen.prefix)} tokens" if seen.grid is not None else "no known grid"
            raise UsageError(
                f"{r.module}: its {keys} keys lie on {found}, and the model states {stated.tokens} on {stated.grid} behind {len(stated.prefix)} tokens; "
                "where a map belongs is not sure, so it is not drawn."
            )
        return stated
    if seen.grid is not None:
        return seen
    for other in reversed(recording.records):
        grid = other.geometry.grid
        if grid is not None and grid[0] * grid[1] + len(other.geometry.prefix) == keys:
            return Geometry(keys, grid, other.geometry.prefix)
    raise UsageError(
        f"{r.module}: it looks at {keys} keys, and no feature map or attention of an image encoder that ran has as many places, so where they lie is not known."
    )


def _of_steps(records: Sequence[Record], tokens: Tensor, beams: Tensor | None, site: Site) -> Tensor:
    """(B, h, T, K) attention over the picture's keys on the CPU: of pass s the row that gave token s."""
    B, T = tokens.shape
    found = []
    for s, r in enumerate(records[:T]):  # passes behind the last token are of beams that lost, or score the caption
        if beams is None:
            if len(r.weights) != B:
                raise UsageError(
                    f"step {s} of {site.name} has {len(r.weights)} rows for {B} pictures: of beams, beam_indices say which row gave each token "
                    "(generate(..., return_dict_in_generate=True, output_scores=True).beam_indices)."
                )
            row = torch.arange(B)
        else:
            row = beams[:, s].cpu().clamp_min(0)
            if int(row.max()) >= len(r.weights):
                raise UsageError(f"beam_indices: step {s} of {site.name} has {len(r.weights)} rows, there is no row {int(row.max())}")
        found.append(r.weights.cpu()[row, :, -1, : site.picture.tokens])
    return torch.stack(found, dim=2)


def _of_whole(model: nn.Module, forced: Callable[[Tensor], Any], tokens: Tensor, sites: Sequence[Site]) -> list[Tensor]:
    """(B, h, T, K) of each site from one pass over the caption: its last T rows, the last of which gives the last token."""
    B, T = tokens.shape
    with record(model, rows=tuple(range(-T, 0)), layers=list(dict.fromkeys(site.module for site in sites))) as recording:
        forced(tokens)
    passes = _passes(recording)
    for site in sites:
        records = passes.get((site.module, site.index), [])
        if len(records) != 1 or len(records[0].weights) != B:
            rows = " and ".join(str(len(r.weights)) for r in records) or "no"
            raise UsageError(f"forced: expected one pass of {site.name} over all {B} captions, got {len(records)} with {rows} rows")
    return [passes[site.module, site.index][0].weights[..., : site.picture.tokens].cpu() for site in sites]


# ── what does not fit ─────────────────────────────────────────────────────────────────────────────────────────


def _check_tokens(tokens: Tensor, beams: Tensor | None) -> None:
    if tokens.dim() != 2 or not tokens.numel() or tokens.dtype != torch.int64:
        raise UsageError(f"tokens: expected output tokens (B, T) int64, at least one of each caption; got {tuple(tokens.shape)} {tokens.dtype}")
    behind = (tokens < 0).cumsum(1) > 0
    if bool((tokens[behind] != -1).any()):
        raise UsageError("tokens: expected nothing but -1 behind the end of a caption")
    if beams is not None and (beams.dim() != 2 or len(beams) != len(tokens) or beams.shape[1] < tokens.shape[1]):
        raise UsageError(f"beam_indices: expected one row of the batch for each of {tuple(tokens.shape)} tokens, got {tuple(beams.shape)}")


def _check_agreement(differences: Tensor, site: Site, tokens: Tensor, differs: float) -> None:
    """differences: (B, T) of one site. UsageError names the first of the largest."""
    largest = float(differences.max())
    if largest <= differs:
        return
    b, t = divmod(int(differences.argmax()), differences.shape[1])
    raise UsageError(
        f"picture {b}, output token {t} (number {int(tokens[b, t])}), {site.name}: its map differs by {largest:.2g} from that of one pass over the whole "
        f"caption, more than {differs:g}, so it may belong to another step and is not drawn. Steps and tokens do not fit (a prompt fed token by token, beams "
        "without their indices, a decoder that sees later words), or the numbers have less than 32 bits: generate in float32."
    )


def _check_alike(weights: Sequence[Tensor], sites: Sequence[Site]) -> None:
    kinds = {(w.shape[1], site.picture.grid) for w, site in zip(weights, sites, strict=True)}
    if len(kinds) > 1:
        named = ", ".join(f"{site.name} {w.shape[1]} heads on {site.picture.grid}" for w, site in zip(weights, sites, strict=True))
        raise UsageError(f"expected the same number of heads and the same grid in every layer that looks at the picture; got {named}")


# ── layers, heads, words ──────────────────────────────────────────────────────────────────────────────────────


def chosen(values: Floats, layers: Layers = "mean", heads: Heads = "mean") -> Floats:
    """(L, h, …) -> (…) float32: the mean of the chosen layers and heads, counted from 0. UsageError names one that is not there."""
    L, h = values.shape[:2]
    rows = layer_numbers(layers, L)
    columns = list(range(h)) if heads == "mean" else _numbers(heads, h, "heads: a layer has", "head")  # type: ignore[arg-type]
    mean: Floats = values[rows][:, columns].mean((0, 1), dtype=np.float64).astype(np.float32)
    return mean


def layer_numbers(layers: Layers, count: int) -> list[int]:
    """The numbers of the chosen of `count` layers. UsageError names one that is not there."""
    if isinstance(layers, str):
        return [count - 1] if layers == "last" else list(range(count))
    return _numbers(layers, count, "layers: the decoder has", "layer")


def _numbers(given: Sequence[int], count: int, what: str, one: str) -> list[int]:
    numbers = list(given)
    missing = [number for number in numbers if not 0 <= number < count]
    if missing or not numbers:
        raise UsageError(f"{what} {count}, counted from 0; there is no {one} {', '.join(map(str, missing)) or 'in an empty list'}")
    return numbers


def merged(maps: Floats, spans: Sequence[Span], how: Literal["mean", "sum"] = "mean", *, offset: int = 0) -> Floats:
    """(…, T, gh, gw) maps of tokens -> (…, W, gh, gw) of words: the mean or the sum over each word's pieces.

    spans: (first, behind the last) piece of each word among the tokens; tokens in no span, such as the end, are in no map. offset: takes the rows so many steps
    later, 1 for those whose query is the piece itself; NaN for a word where these lie behind the last token. UsageError for a span outside the tokens.
    """
    T = maps.shape[-3]
    words = []
    for first, behind in spans:
        if not 0 <= first < behind <= T:
            raise UsageError(f"expected pieces of a word among {T} tokens, got those from {first} to before {behind}")
        part = maps[..., first + offset : behind + offset, :, :] if first + offset >= 0 else maps[..., :0, :, :]
        if part.shape[-3] < behind - first:
            words.append(np.full((*maps.shape[:-3], *maps.shape[-2:]), np.nan, np.float32))
        else:
            words.append(part.sum(-3) if how == "sum" else part.mean(-3))
    return np.stack(words, axis=-3).astype(np.float32) if words else np.zeros((*maps.shape[:-3], 0, *maps.shape[-2:]), np.float32)


def queries(tokens: Sequence[int], spans: Sequence[Span], text_of: Callable[[int], str], start: int) -> list[str]:
    """The text of each word's query: the token before its first piece, which the step had read last; `start`, or the last of a prompt, before the first."""
    return [text_of(int(tokens[first - 1]) if first else start) for first, _ in spans]
