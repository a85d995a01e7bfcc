"""Relevance of patches through all layers of self-attention (Chefer, Gur and Wolf 2021, arXiv 2103.15679), of any ViT, unedited.

Eq. 5: A_bar = mean over heads of the positive part of (dy/dA * A); eq. 6: R <- R + A_bar R from R = 1, layer by layer; the map is the row
of the token that the head reads. That row alone is computed: r^T (1 + A_bar_L) … (1 + A_bar_1) from left to right, which is the order in which
a backward pass meets the layers, so one layer's N x N is in memory at a time. The paper's models all read a class token; of a model that does
not, the rows of the patches are averaged, which is our extension (the rule is linear in the row).

Not covered, and refused: windows (Swin: tokens of different layers are different places), cross-attention, models whose sequence changes length.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from pellucid.errors import UsageError
from pellucid.inside.attribution import Attribution, Logits, check_given, class_scores, examining, trace_of
from pellucid.inside.calls import AttentionCall
from pellucid.inside.intercept import watching
from pellucid.inside.layers import Trace
from pellucid.inside.outputs import logits_of


@dataclass
class _Row:
    """The row r of R, (B, N), carried from the last attention down to the first as the backward pass meets them."""

    values: Tensor
    calls: list[AttentionCall]
    waiting: dict[int, Tensor] = field(default_factory=dict)
    left: int = field(init=False)

    def __post_init__(self) -> None:
        self.left = len(self.calls)
        for number, call in enumerate(self.calls):
            call.on_gradient(partial(self.meet, number))

    def meet(self, number: int, gradient: Tensor) -> None:
        """Take in dy/dA of one attention, (B, h, N, N). Parallel branches may come out of order: their turn is awaited."""
        self.waiting[number] = (gradient * self.calls[number].probabilities()).clamp(min=0).mean(dim=1)  # eq. 5, (B, N, N)
        while self.left - 1 in self.waiting:
            self.left -= 1
            self.values = self.values + torch.einsum("bi,bij->bj", self.values, self.waiting.pop(self.left))  # eq. 6, its row


def relevance(model: nn.Module, images: Tensor, *, targets: Tensor | None = None, logits: Logits = logits_of) -> Attribution:
    """How much each patch feeds the logit of the target through the attentions: values (B, gh, gw), prefix tokens left out.

    No targets: the predicted class. UsageError for a model in which the rule is not defined: no self-attention, windows, cross-attention.
    Memory of a call: the N x N probabilities of one layer, beside what a backward pass needs.
    """
    check_given(images, targets)
    with examining(model) as inner:
        trace = trace_of(inner, images, targets, logits)
        leaf = images.detach().clone().requires_grad_()
        calls: list[AttentionCall] = []
        with watching(inner, calls.append) as sight:
            scores, chosen, _ = class_scores(inner, leaf.clone(), targets, logits)
        tokens = _sequence(calls, len(images), sight.unseen())
        read = _read_tokens(trace, tokens)
        start = torch.zeros(len(images), tokens, device=leaf.device)
        start[:, read.rows] = 1 / len(read.rows)
        row = _Row(start, calls)
        torch.autograd.grad(scores.sum(), leaf)
    if row.left:
        raise UsageError(f"attention {calls[row.left - 1].module!r} received no gradient from the class logit, so no relevance can be carried through it")
    values = row.values[:, read.prefix :].unflatten(1, read.grid)
    how = f"relevance through {len(calls)} self-attentions (2103.15679, eq. 5 and 6), {read.how}"
    return Attribution(values.cpu().numpy(), f"{calls[0].module} to {calls[-1].module}", chosen.cpu().numpy(), "relevance", how)


def _sequence(calls: list[AttentionCall], images: int, unseen: Iterable[str]) -> int:
    """The number of tokens N, which is that of every attention. UsageError where the rule is not defined."""
    if missing := sorted(unseen):
        raise UsageError(f"attention {missing[0]!r} ran without its probabilities being seen: relevance would leave its layer out; use grad_cam")
    if not calls:
        raise UsageError("relevance needs self-attention, and this model ran none; use grad_cam")
    for call in calls:
        batch, _, queries, keys = call.shape
        if batch != images:
            raise UsageError(
                f"attention {call.module!r} runs inside windows ({batch} of them for {images} images): relevance is not defined across windows, "
                "whose tokens are other places in other layers; use grad_cam"
            )
        if call.kind != "self" or not queries == keys == calls[0].shape[2]:
            raise UsageError(
                f"attention {call.module!r} has {queries} queries and {keys} keys ({call.kind}-attention), where relevance needs self-attention over one "
                "sequence of tokens that is the same in every layer; use grad_cam"
            )
    return calls[0].shape[2]


@dataclass(frozen=True)
class _Read:
    """The grid of patches behind `prefix` tokens, the tokens whose rows are averaged, and that in words."""

    grid: tuple[int, int]
    prefix: int
    rows: list[int]
    how: str


def _read_tokens(trace: Trace, tokens: int) -> _Read:
    """The tokens at which the last layer still has a gradient: the prefix tokens among them (class; distillation), else all patches."""
    ends = [name for name in trace.gradients if trace.layers[name].shape[1] == tokens and trace.arrangement(name).axes == "tokens"]
    if not ends:
        raise UsageError(f"expected {tokens} tokens that lie on a grid of patches behind a class score that reads them; no layer shows one")
    arrangement, gradient = trace.arrangement(ends[-1]), trace.gradients[ends[-1]]
    reads = gradient.abs().sum(dim=(0, 2)) > 0  # (N,)
    prefix = arrangement.prefix
    rows = [i for i in range(prefix) if bool(reads[i])]
    if not rows:
        how = "the mean over patch rows, as the head reads no class token"
        return _Read(arrangement.grid, prefix, list(range(prefix, tokens)), how + (", prefix tokens left out" if prefix else ""))
    how = "the class-token row" if len(rows) == 1 else f"the mean of the rows of {len(rows)} prefix tokens that the head reads"
    also = " (the head reads patches too, whose rows are not in it)" if bool(reads[prefix:].any()) else ""
    return _Read(arrangement.grid, prefix, rows, f"{how}{also}, prefix tokens left out")
