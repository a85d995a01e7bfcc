"""What is wrong with a map whatever it should show: sinks, registers, and maps that say nothing. numpy alone.

A vision transformer may keep what it knows of the whole image in a few patches of the background, whose tokens then have large norms and
draw the attention of all others (Darcet et al. 2309.16588); prefix tokens (class, registers) draw it too. Measures of rank cannot see it:
a map that is right everywhere else and has 0.6 of its mass in one such patch still has an AUC of 0.98.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from pellucid.errors import UsageError

# Above these a reader is told.
PREFIX_SHARE = 0.5  # most of what the query looks at is not in the picture
LARGEST_PATCH, TIMES_UNIFORM = 0.25, 8  # a quarter of the map in one patch; on coarse grids, where a thing fits into one, 8 times its even share
ENTROPY = 0.99  # as even as a map half of whose patches weigh twice the others
NORM_OUTLIERS = 0.01  # Darcet et al. count 2.4 % of the patches of DINOv2
# A norm is an outlier above the median + 5 robust standard deviations, and above 1.5 medians so that nearly equal norms have none.
ROBUST_DEVIATIONS, TIMES_MEDIAN = 5.0, 1.5
MAD_TO_STD = 1.4826  # of a normal distribution


def artefacts(relevance: ArrayLike, *, prefix_share: float | None = None, patch_norms: ArrayLike | None = None) -> dict[str, float]:
    """{"largest_patch", "entropy", and where they are given "prefix_share", "norm_outliers"}, fractions in [0, 1].

    relevance: (gh, gw) >= 0, of any scale; zeros count as a uniform map. prefix_share: the share of the query's attention on prefix tokens.
    patch_norms: (gh, gw) L2 norms of the patch tokens.
    largest_patch: the largest patch's share of the sum. entropy: that of the map as a distribution over patches, as a share of log(patches).
    norm_outliers: share of patches whose norm is above both median + 5 * 1.4826 MAD and 1.5 medians.
    """
    values = np.asarray(relevance, dtype=np.float64)
    if values.ndim != 2 or not values.size or not np.isfinite(values).all() or (values < 0).any():
        raise UsageError(f"expected a map (gh, gw) of finite values >= 0, got shape {values.shape}")
    p = (values if values.any() else np.ones_like(values)).ravel()
    p = p / p.sum()
    some = p[p > 0]
    entropy = float(-(some * np.log(some)).sum()) / math.log(p.size) if p.size > 1 else 1.0
    found = {"largest_patch": float(p.max()), "entropy": min(max(entropy, 0.0), 1.0)}  # rounding may leave [0, 1] by 1e-16
    if prefix_share is not None:
        found["prefix_share"] = float(prefix_share)
    if patch_norms is not None:
        norms = np.asarray(patch_norms, dtype=np.float64)
        if norms.shape != values.shape:
            raise UsageError(f"expected a norm for each patch of the map, {values.shape}; got {norms.shape}")
        found["norm_outliers"] = float((norms > outlier_norm(norms)).mean())
    return found


def outlier_norm(norms: ArrayLike) -> float:
    """The norm above which a patch token is an outlier."""
    x = np.asarray(norms, dtype=np.float64)
    median = float(np.median(x))
    spread = MAD_TO_STD * float(np.median(np.abs(x - median)))
    return max(median + ROBUST_DEVIATIONS * spread, TIMES_MEDIAN * median)


def flags(found: Mapping[str, float], *, patches: int) -> list[str]:
    """A sentence for each artefact above its threshold; `patches` is how many the map has."""
    sentences = {
        "prefix_share": (PREFIX_SHARE, "of the attention goes to prefix tokens and is not in the picture"),
        "largest_patch": (max(LARGEST_PATCH, TIMES_UNIFORM / patches), "of the map lies in one patch, which may be a sink; rank and AUC cannot see it"),
        "norm_outliers": (NORM_OUTLIERS, "of the patch tokens have outlying norms, as models without registers have in the background"),
    }
    told = [f"{100 * found[name]:.1f} % {text}" for name, (most, text) in sentences.items() if found.get(name, 0.0) > most]
    if found.get("entropy", 0.0) > ENTROPY:
        told.append(f"the map is nearly uniform: its entropy is {100 * found['entropy']:.1f} % of the largest possible")
    return told
