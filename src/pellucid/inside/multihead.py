"""torch's multi-head attention functions, read: their arguments -> a `Projected` attention (Vaswani et al. 2017, section 3.2.2).

`F.multi_head_attention_forward` and the two functions behind the fast path of nn.MultiheadAttention and nn.TransformerEncoderLayer hand out
nothing but their result, so the probabilities of wanted rows are computed from what went in.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pellucid.inside.calls import Projected

_FORWARD = inspect.signature(F.multi_head_attention_forward)


def projected_call(args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Projected | None:
    """What `F.multi_head_attention_forward` computed: its tensors are (N, B, D), or (N, D) of one sample. None with static keys, which are not read."""
    bound = _FORWARD.bind(*args, **kwargs)
    bound.apply_defaults()
    a = bound.arguments
    if a["static_k"] is not None or a["static_v"] is not None:
        return None
    query, key, value = (_batch_first(a[name]) for name in ("query", "key", "value"))
    if a["use_separate_proj_weight"]:
        weights = (a["q_proj_weight"], a["k_proj_weight"], a["v_proj_weight"])
    else:
        weights = a["in_proj_weight"].chunk(3)
    biases = None if a["in_proj_bias"] is None else a["in_proj_bias"].chunk(3)
    B, heads = query.shape[0], a["num_heads"]
    extra_key, extra_value = _extra(a, heads)
    padding = a["key_padding_mask"]
    mask = _additive(a["attn_mask"], B, heads, padding if padding is None or padding.dim() == 2 else padding[None])
    if mask is not None and extra_key is not None:
        mask = F.pad(mask, (0, extra_key.shape[2]))
    output = result[0] if isinstance(result, tuple) else result
    return Projected(
        query, key, value, heads, weights, biases, mask, extra_key, extra_value, a["out_proj_weight"], output, batch_first=False,
    )  # fmt: skip


def native_call(args: tuple[Any, ...], result: Any) -> Projected:
    """What `torch._native_multi_head_attention` computed: the fast path of nn.MultiheadAttention, (B, N, D)."""
    query, key, value, _, heads, weight, bias, out_weight, _, mask, *rest = args
    kind = rest[2] if len(rest) > 2 else None
    query, absent = _dense(query)
    key, _ = _dense(key)
    value, _ = _dense(value)
    merged = _fast_mask(mask, kind, absent)
    return Projected(query, key, value, heads, weight.chunk(3), bias.chunk(3), merged, out_weight=out_weight, output=result[0], absent=absent)


def encoder_layer_call(args: tuple[Any, ...]) -> Projected:
    """What `torch._transformer_encoder_layer_fwd` computed: the fast path of nn.TransformerEncoderLayer. No gradient flows there."""
    source, _, heads, weight, bias, _, _, _, norm_first, eps, norm_weight, norm_bias, *rest = args
    mask, kind = rest[6], rest[7]
    tokens, absent = _dense(source)
    if norm_first:
        tokens = F.layer_norm(tokens, tokens.shape[-1:], norm_weight, norm_bias, eps)
    return Projected(tokens, tokens, tokens, heads, weight.chunk(3), bias.chunk(3), _fast_mask(mask, kind, absent), absent=absent)


def _batch_first(x: Tensor) -> Tensor:
    return x[None] if x.dim() == 2 else x.transpose(0, 1)


def _dense(x: Tensor) -> tuple[Tensor, Tensor | None]:
    """(B, N, D) with zeros where a nested tensor ends, and where (B, N) that is."""
    if not x.is_nested:
        return x, None
    lengths = torch.tensor([len(sample) for sample in x.unbind()], device=x.device)
    dense = x.to_padded_tensor(0.0)
    return dense, torch.arange(dense.shape[1], device=x.device) >= lengths[:, None]


def _additive(mask: Tensor | None, batch: int, heads: int, padding: Tensor | None) -> Tensor | None:
    """One additive mask (B or 1, h or 1, N or 1, K) from an attention mask (N, K) or (B h, N, K) and a padding mask (B, K); True is left out."""
    found = None
    if mask is not None:
        found = _as_float(mask)
        found = found[None, None] if found.dim() == 2 else found.view(batch, heads, *found.shape[1:])
    if padding is not None:
        padded = _as_float(padding)[:, None, None, :]
        found = padded if found is None else found + padded
    return found


def _as_float(mask: Tensor) -> Tensor:
    mask = mask.detach()
    return torch.zeros(mask.shape, device=mask.device).masked_fill(mask, -torch.inf) if mask.dtype == torch.bool else mask.float()


def _fast_mask(mask: Tensor | None, kind: int | None, absent: Tensor | None) -> Tensor | None:
    """The mask of a fast path, whose kind says what it is: 0 attention (N, N), 1 padding (B, N), 2 both (B, h, N, N)."""
    if mask is None:
        return None if absent is None else _as_float(absent)[:, None, None, :]
    found = _as_float(mask)
    return found[None, None] if found.dim() == 2 and kind == 0 else found[:, None, None, :] if found.dim() == 2 else found


def _extra(a: dict[str, Any], heads: int) -> tuple[Tensor | None, Tensor | None]:
    """Keys and values behind the others: `bias_k`, `bias_v` (1, 1, D) and a zero."""
    keys, values = [], []
    if a["bias_k"] is not None:
        keys.append(a["bias_k"].view(1, 1, heads, -1).transpose(1, 2))
        values.append(a["bias_v"].view(1, 1, heads, -1).transpose(1, 2))
    if a["add_zero_attn"]:
        d = a["embed_dim_to_check"] // heads
        zero = torch.zeros((1, heads, 1, d), device=a["query"].device)
        keys.append(zero)
        values.append(zero)
    return (torch.cat(keys, dim=2), torch.cat(values, dim=2)) if keys else (None, None)
