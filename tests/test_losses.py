"""Losses against torch's own and a float64 twin from the definition."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from pellucid.losses import balanced_class_weights, cross_entropy, soft_targets, target_weight

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(12, 5, generator=GENERATOR)
LABELS = torch.randint(0, 5, (12,), generator=GENERATOR)
WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 3.0, 0.1])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_hard_targets_give_torchs_mean(smoothing: float, weights: torch.Tensor | None) -> None:
    targets = soft_targets(LABELS, 5)
    ours = cross_entropy(LOGITS, targets, class_weights=weights, label_smoothing=smoothing) / target_weight(targets, weights)
    torch.testing.assert_close(ours, F.cross_entropy(LOGITS, LABELS, weight=weights, label_smoothing=smoothing))


def test_soft_targets_follow_the_definition_in_float64() -> None:
    targets = torch.softmax(torch.randn(12, 5, generator=GENERATOR), dim=1)
    expected = 0.0
    for z, t in zip(LOGITS.double().tolist(), targets.double().tolist(), strict=True):
        log_sum = math.log(sum(math.exp(v) for v in z))
        for c in range(5):
            expected -= WEIGHTS[c].item() * (0.9 * t[c] + 0.1 / 5) * (z[c] - log_sum)
    ours = cross_entropy(LOGITS, targets, class_weights=WEIGHTS, label_smoothing=0.1)
    assert float(ours) == pytest.approx(expected, rel=1e-6)


def test_balanced_weights_are_inverse_frequency_with_mean_one_over_samples() -> None:
    counts = torch.tensor([10, 0, 30])
    weights = balanced_class_weights(counts)
    assert weights.tolist() == pytest.approx([40 / (2 * 10), 0.0, 40 / (2 * 30)])
    assert float((weights * counts).sum() / counts.sum()) == pytest.approx(1.0)
