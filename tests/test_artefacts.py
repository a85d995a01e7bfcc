"""Artefacts of a map: against scipy, and a sink that measures of rank cannot see."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from pellucid.errors import UsageError
from pellucid.inside import faithfulness
from pellucid.inside.artefacts import artefacts, flags, outlier_norm
from pellucid.inside.faithfulness import PatchTarget


def test_a_sink_that_auc_cannot_see_is_flagged() -> None:
    """The trap: right everywhere but in one patch of the background, which holds 0.6 of the map."""
    inside = np.arange(64).reshape(8, 8) < 14
    target = PatchTarget(inside, np.ones((8, 8), bool), inside.astype(float))
    relevance = np.where(target.target, 0.4 / 14, 0.0)
    relevance[7, 7] = 0.6
    assert faithfulness.auc(relevance, target) == pytest.approx(0.98)
    assert faithfulness.pointing(relevance, target) == 0.0
    assert faithfulness.mass(relevance, target) == pytest.approx(0.4)
    assert flags(artefacts(relevance), patches=64) == ["60.0 % of the map lies in one patch, which may be a sink; rank and AUC cannot see it"]


def test_on_a_coarse_grid_a_thing_may_fill_one_patch() -> None:
    relevance = np.full((4, 4), 0.6 / 15)
    relevance[1, 1] = 0.4
    assert flags(artefacts(relevance), patches=16) == []
    relevance[1, 1] = 1.0
    assert flags(artefacts(relevance), patches=16)[0].startswith("62.5 % of the map lies in one patch")


def test_entropy_is_that_of_the_distribution_over_patches() -> None:
    relevance = np.random.default_rng(0).random((6, 7))
    relevance[0] = 0.0
    found = artefacts(relevance)
    assert found["entropy"] == pytest.approx(scipy.stats.entropy(relevance.ravel()) / math.log(42))
    assert found["largest_patch"] == pytest.approx(relevance.max() / relevance.sum())
    assert set(found) == {"entropy", "largest_patch"}
    assert flags(found, patches=42) == []


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_a_map_that_says_nothing_is_flagged(value: float) -> None:
    found = artefacts(np.full((5, 5), value))
    assert found == {"largest_patch": pytest.approx(1 / 25), "entropy": pytest.approx(1.0)}
    assert flags(found, patches=25) == ["the map is nearly uniform: its entropy is 100.0 % of the largest possible"]


def test_the_edge_of_nearly_uniform_is_twice_the_weight_in_half_of_the_patches() -> None:
    half = np.where(np.arange(196).reshape(14, 14) % 2 == 0, 1.0, 2.0)
    assert flags(artefacts(half), patches=196) == []
    assert flags(artefacts(half + 0.2), patches=196) != []


def test_registers_are_seen_by_the_norms_of_their_tokens() -> None:
    norms = np.random.default_rng(0).normal(50.0, 3.0, (14, 14))
    relevance = np.random.default_rng(1).random((14, 14))
    assert artefacts(relevance, prefix_share=0.1, patch_norms=norms)["norm_outliers"] == 0.0
    norms[2, 3], norms[9, 9], norms[13, 0] = 200.0, 300.0, 250.0
    found = artefacts(relevance, prefix_share=0.7, patch_norms=norms)
    assert found["norm_outliers"] == 3 / 196
    assert found["prefix_share"] == 0.7
    told = flags(found, patches=196)
    assert told[0].startswith("70.0 % of the attention goes to prefix tokens")
    assert told[1].startswith("1.5 % of the patch tokens have outlying norms")


def test_norms_that_are_nearly_equal_have_no_outliers() -> None:
    norms = np.full((4, 4), 10.0)
    norms[0, 0] = 10.2
    assert outlier_norm(norms) == 15.0
    assert artefacts(np.ones((4, 4)), patch_norms=norms)["norm_outliers"] == 0.0


def test_artefacts_of_something_else_are_refused() -> None:
    with pytest.raises(UsageError, match="finite values >= 0"):
        artefacts(-np.ones((2, 2)))
    with pytest.raises(UsageError, match=r"a norm for each patch of the map, \(2, 2\); got \(3, 3\)"):
        artefacts(np.ones((2, 2)), patch_norms=np.ones((3, 3)))
