"""One attention of a forward pass: its probabilities for wanted query rows, and their gradient, from what the model computed anyway.

Scaled dot-product attention (Vaswani et al. 2017, eq. 1) is softmax(q kT scale + mask) v. A model gives it in three forms: q, k
and v handed to a fused kernel, tokens and projection weights handed to `multi_head_attention_forward`, or the probabilities
themselves. Whatever the form, `probabilities(rows)` costs memory for the wanted rows only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Gradient = Callable[[Tensor], None]


@dataclass
class Fused:
    """q (B, h, N, d), k and v (B, hk, K, d) handed to a fused kernel; `mask` boolean (True takes part) or additive, broadcastable to (B, h, N, K).

    `value` and `output` are None where only probabilities are wanted of it. `fused` makes one of what a module handed over in another shape; then
    `arrange` turns a tensor of that shape, such as a gradient, into this one.
    """

    query: Tensor
    key: Tensor
    value: Tensor | None
    mask: Tensor | None
    causal: bool
    scale: float | None
    output: Tensor | None = None
    arrange: Callable[[Tensor], Tensor] | None = None

    @property
    def device(self) -> torch.device:
        return self.query.device

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, h, N, K)."""
        query = _with_heads(self.query)
        return query.shape[0], query.shape[1], query.shape[2], self.key.shape[-2]

    @torch.no_grad()
    def probabilities(self, rows: Tensor | None) -> Tensor:
        """(B, h, R, K) float32."""
        query, key = _with_heads(self.query.detach()), _with_heads(self.key.detach())
        length = query.shape[2]
        if rows is not None:
            rows = rows.to(query.device)
            query = query[:, :, rows]
        scale = self.scale if self.scale is not None else 1.0 / math.sqrt(query.shape[-1])
        key = _shared_out(key, query.shape[1])
        scores = (query.float() * scale) @ key.float().transpose(-1, -2)  # (B, h, R, K)
        if self.causal:  # as the kernel aligns it: row i sees keys 0 to i
            positions = torch.arange(length, device=key.device) if rows is None else rows
            scores = scores.masked_fill(torch.arange(key.shape[2], device=key.device) > positions[:, None], -math.inf)
        scores = _masked(scores, self.mask, rows, length)
        return _softmax(scores)

    def on_gradient(self, callback: Gradient) -> None:
        """Call back with dL/dA (B, h, N, K): as O = A V, dL/dA = dL/dO VT."""
        assert self.value is not None
        assert self.output is not None
        if not self.output.requires_grad:
            return
        value = _shared_out(_with_heads(self.value.detach()), _with_heads(self.query).shape[1])

        def seen(gradient: Tensor) -> None:
            arranged = gradient if self.arrange is None else self.arrange(gradient)
            callback(_with_heads(arranged).float() @ value.float().transpose(-1, -2))

        self.output.register_hook(seen)


def fused(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, scale: float | None, output: Tensor, heads: int) -> Fused:
    """A `Fused` of what a kernel got, in any shape: (B h, N, d) of `heads` heads, or more leading dimensions, that of `heads` elements being the heads'."""
    dims = query.dim()
    if dims == 4 or dims < 3 or (dims == 3 and (heads <= 1 or query.shape[0] % heads)):
        return Fused(query, key, value, mask, causal, scale, output)
    if dims == 3:
        arrange = lambda x: x.unflatten(0, (-1, heads))  # noqa: E731
        mask = mask.unflatten(0, (-1, heads)) if mask is not None and mask.dim() == 3 and mask.shape[0] == query.shape[0] else mask
        return Fused(arrange(query), arrange(key), arrange(value), mask, causal, scale, output, arrange)
    at = next((i for i in range(1, dims - 2) if query.shape[i] == heads), dims - 3)
    arrange = lambda x: x.movedim(at, -3).flatten(0, dims - 4)  # noqa: E731
    if mask is not None and mask.dim() > 2:
        mask = arrange(mask.expand(*query.shape[:-1], key.shape[-2]))
    return Fused(arrange(query), arrange(key), arrange(value), mask, causal, scale, output, arrange)


@dataclass
class Projected:
    """Tokens and weights handed to multi-head attention: query (B, N, D), key and value (B, K, ·), projections as `F.linear` takes them.

    `mask` is additive float32, broadcastable to (B, h, N, K); `output` is what the layer gave, after `out_weight` (D, D): (B, N, D),
    or (N, B, D) where not `batch_first`. `absent` (B, N): queries that padding removed, which have no probabilities.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    heads: int
    weights: tuple[Tensor, Tensor, Tensor]
    biases: tuple[Tensor, Tensor, Tensor] | None
    mask: Tensor | None
    extra_key: Tensor | None = None  # (B or 1, h, E, d): bias_k and the zero key, behind the others
    extra_value: Tensor | None = None
    out_weight: Tensor | None = None
    output: Tensor | None = None
    batch_first: bool = True
    absent: Tensor | None = None

    @property
    def device(self) -> torch.device:
        return self.query.device

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, h, N, K)."""
        extra = 0 if self.extra_key is None else self.extra_key.shape[2]
        return self.query.shape[0], self.heads, self.query.shape[1], self.key.shape[1] + extra

    @torch.no_grad()
    def probabilities(self, rows: Tensor | None) -> Tensor:
        """(B, h, R, K) float32. Few rows do not project all keys: q (Wk x) is (q Wk) x, which costs R h N D instead of N D D."""
        rows = None if rows is None else rows.to(self.query.device)
        tokens = self.query.detach().float() if rows is None else self.query.detach()[:, rows].float()
        B, R, _ = tokens.shape
        bias = None if self.biases is None else self.biases[0].detach().float()
        query = torch.nn.functional.linear(tokens, self.weights[0].detach().float(), bias)
        query = query.view(B, R, self.heads, -1).transpose(1, 2) / math.sqrt(query.shape[-1] // self.heads)  # (B, h, R, d)
        key, d = self.key.detach().float(), query.shape[-1]
        weight = self.weights[1].detach().float().view(self.heads, d, -1)
        if self.heads * R < key.shape[-1]:
            scores = (query @ weight).flatten(1, 2) @ key.transpose(1, 2)  # (B, h R, D) (B, D, K)
            scores = scores.view(B, self.heads, R, -1)
            if self.biases is not None:
                scores = scores + query @ self.biases[1].detach().float().view(self.heads, d, 1)
        else:
            bias = None if self.biases is None else self.biases[1].detach().float()
            keys = torch.nn.functional.linear(key, self.weights[1].detach().float(), bias)
            scores = query @ keys.view(B, -1, self.heads, d).permute(0, 2, 3, 1)
        if self.extra_key is not None:
            scores = torch.cat([scores, query @ self.extra_key.detach().float().transpose(-1, -2).expand(B, -1, -1, -1)], dim=-1)
        found = _softmax(_masked(scores, self.mask, rows, self.query.shape[1]))
        if self.absent is not None:
            gone = self.absent if rows is None else self.absent[:, rows]
            found = found.masked_fill(gone[:, None, :, None], math.nan)
        return found

    def on_gradient(self, callback: Gradient) -> None:
        """Call back with dL/dA (B, h, N, K), through the output projection: dL/d(A V) = dL/dO Wo."""
        assert self.out_weight is not None
        assert self.output is not None
        if not self.output.requires_grad:
            return
        B, h, N, _ = self.shape
        bias = None if self.biases is None else self.biases[2].detach()
        value = torch.nn.functional.linear(self.value.detach(), self.weights[2].detach(), bias)
        value = value.view(B, value.shape[1], h, -1).transpose(1, 2)
        if self.extra_value is not None:
            value = torch.cat([value, self.extra_value.detach().expand(B, -1, -1, -1)], dim=2)
        out_weight = self.out_weight.detach()

        def seen(gradient: Tensor) -> None:
            batched = gradient if self.batch_first else gradient.transpose(0, 1) if gradient.dim() == 3 else gradient[None]
            heads = (batched.reshape(B, N, -1) @ out_weight).view(B, N, h, -1).transpose(1, 2)
            callback(heads.float() @ value.float().transpose(-1, -2))

        self.output.register_hook(seen)


@dataclass
class Explicit:
    """Probabilities that the model computed itself: the result of its softmax, (B, h, N, K), or (B h, N, K) of `heads` heads."""

    softmax: Tensor
    heads: int

    @property
    def device(self) -> torch.device:
        return self.softmax.device

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, h, N, K)."""
        seen = self._heads_apart(self.softmax)
        return seen.shape[0], seen.shape[1], seen.shape[2], seen.shape[3]

    @torch.no_grad()
    def probabilities(self, rows: Tensor | None) -> Tensor:
        """(B, h, R, K) float32, a copy."""
        found = self._heads_apart(self.softmax.detach())
        return found.float().clone() if rows is None else found[:, :, rows.to(found.device)].float()

    def on_gradient(self, callback: Gradient) -> None:
        """Call back with dL/dA (B, h, N, K)."""
        if self.softmax.requires_grad:
            self.softmax.register_hook(lambda gradient: callback(self._heads_apart(gradient).float()))

    def _heads_apart(self, x: Tensor) -> Tensor:
        if x.dim() == 3 and self.heads > 1 and x.shape[0] % self.heads == 0:
            return x.reshape(-1, self.heads, *x.shape[1:])
        return _with_heads(x)


@dataclass
class AttentionCall:
    """An attention as it happened: in which module (path), in which forward pass of that module, the how-many-eth within it.

    kind: "self" or "cross". `modules` is the stack of module paths around it, outermost first.
    """

    module: str
    call: int
    index: int
    kind: str
    modules: tuple[str, ...]
    form: Fused | Projected | Explicit

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, h, N, K): batch, heads, queries, keys."""
        return self.form.shape

    def probabilities(self, rows: Tensor | None = None) -> Tensor:
        """(B, h, R, K) float32, detached: the given query rows, all without."""
        return self.form.probabilities(rows)

    def on_gradient(self, callback: Gradient) -> None:
        """In a later backward pass, call back with dL/dA (B, h, N, K) float32; never when no gradient flows here."""
        self.form.on_gradient(callback)


def _with_heads(x: Tensor) -> Tensor:
    """(B, h, N, d): one head where there is no such dimension, further leading dimensions into the batch."""
    return x.unsqueeze(1) if x.dim() == 3 else x[None, None] if x.dim() == 2 else x.flatten(0, x.dim() - 4)


def _shared_out(x: Tensor, heads: int) -> Tensor:
    """Keys or values that several query heads share (grouped queries), once for each query head."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)


def _masked(scores: Tensor, mask: Tensor | None, rows: Tensor | None, length: int) -> Tensor:
    if mask is None:
        return scores
    mask = mask.detach()
    if rows is not None and mask.dim() >= 2 and mask.shape[-2] == length and length > 1:
        mask = mask[..., rows, :]
    if mask.dim() > 4:
        mask = mask.flatten(0, mask.dim() - 4)
    elif mask.dim() == 3 and scores.shape[1] == 1:  # of an attention without a dimension for heads
        mask = mask.unsqueeze(1)
    return scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask.float()


def _softmax(scores: Tensor) -> Tensor:
    """Softmax over keys; a row whose keys are all masked is 0, as the fused kernels give it."""
    return scores.softmax(-1).masked_fill((scores == -math.inf).all(-1, keepdim=True), 0.0)
