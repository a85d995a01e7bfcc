"""Losses over masks against float64 twins from the definitions, torch and segmentation_models_pytorch; sums that a cut of the batch cannot change."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from segmentation_models_pytorch.losses import DiceLoss, LovaszLoss
from torch import Tensor

from pellucid.errors import DataError, UsageError
from pellucid.losses import balanced_class_weights
from pellucid.pixel_losses import IMAGE_TERMS, Term, Weights, check_terms, kept_floats, median_frequency_weights, pixel_loss, window_weights

IGNORED = 255
C = 4
CLASS_WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 0.1])
GENERATOR = torch.Generator().manual_seed(0)
PIXEL = [Term("cross_entropy"), Term("poly1", epsilon=2.0), Term("focal", gamma=1.5), Term("poly1_focal", epsilon=-0.5, gamma=2.0)]
IMAGE = [Term("dice"), Term("lovasz")]
SUM = [Term("poly1", 0.7), Term("dice", 0.4), Term("lovasz", 1.3)]
LOSSES = [[term] for term in [*PIXEL, *IMAGE]] + [SUM]
NAMES = ["+".join(term.name for term in terms) for terms in LOSSES]


def drawn(n: int, height: int, width: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """(logits, targets) with another ignored area in each image, the second image ignored as a whole, and class 3 in the first image alone."""
    logits = 2.0 * torch.randn(n, C, height, width, generator=GENERATOR, dtype=dtype)
    targets = torch.randint(0, C - 1, (n, height, width), generator=GENERATOR)
    targets[0, -1] = C - 1
    for image, rows in enumerate(torch.randint(0, height - 1, (n,), generator=GENERATOR).tolist()):
        targets[image, :rows, : width - image % width] = IGNORED
    targets[1:2] = IGNORED
    return logits, targets


def loss(
    logits: Tensor, targets: Tensor, terms: Sequence[Term], *, class_weights: Tensor | None = None, smoothing: float = 0.0, weights: Weights | None = None
) -> Tensor:
    """Loss of the recipe: the sum divided by the weight, of the batch itself unless a window's is given."""
    weights = weights or window_weights(targets, terms, ignored=IGNORED, class_weights=class_weights)
    summed = pixel_loss(logits, targets, terms, ignored=IGNORED, class_weights=class_weights, label_smoothing=smoothing, weights=weights)
    return summed / weights.total


def twin_of_pixels(logits: Tensor, targets: Tensor, term: Term, class_weights: Sequence[float], smoothing: float) -> float:
    """The term's weighted mean over valid pixels, one pixel at a time."""
    total = weight = 0.0
    for z, label in zip(logits.double().movedim(1, -1).reshape(-1, C).tolist(), targets.flatten().tolist(), strict=True):
        if label == IGNORED:
            continue
        p = [math.exp(v) / sum(math.exp(u) for u in z) for v in z]
        miss, w = 1.0 - p[label], class_weights[label]
        target = [(1.0 - smoothing) * (c == label) + smoothing / C for c in range(C)]
        cross_entropy = -sum(class_weights[c] * target[c] * math.log(p[c]) for c in range(C))
        focal = -w * miss**term.gamma * math.log(p[label])
        total += {
            "cross_entropy": cross_entropy,
            "poly1": cross_entropy + w * term.epsilon * miss,
            "focal": focal,
            "poly1_focal": focal + w * term.epsilon * miss ** (term.gamma + 1),
        }[term.name]
        weight += w
    return total / weight


def twin_of_images(logits: Tensor, targets: Tensor, name: str) -> float:
    """Mean over images with a valid pixel of the mean over the classes in their masks, from sets of pixels."""
    values = []
    for z, mask in zip(logits.double(), targets.flatten(1).tolist(), strict=True):
        p = torch.softmax(z.flatten(1), 0).tolist()
        valid = [i for i, label in enumerate(mask) if label != IGNORED]
        present = sorted({mask[i] for i in valid})
        if present:
            twin = {"dice": _dice_of_class, "lovasz": _lovasz_of_class}[name]
            values.append(sum(twin(p[c], {i for i in valid if mask[i] == c}, valid) for c in present) / len(present))
    return sum(values) / len(values)


def _dice_of_class(p: list[float], truth: set[int], valid: list[int]) -> float:
    return 1.0 - 2.0 * sum(p[i] for i in truth) / (sum(p[i] for i in valid) + len(truth))


def _lovasz_of_class(p: list[float], truth: set[int], valid: list[int]) -> float:
    """sum_i m_i (Delta({1..i}) - Delta({1..i-1})) with pixels in the order of falling errors m and Delta(M) = |M| / |truth or M|, each prefix anew."""
    errors = {i: 1.0 - p[i] if i in truth else p[i] for i in valid}
    order = sorted(valid, key=lambda i: -errors[i])

    def delta(mistaken: set[int]) -> float:
        return len(mistaken) / len(truth | mistaken)

    return sum(errors[i] * (delta(set(order[: k + 1])) - delta(set(order[:k]))) for k, i in enumerate(order))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("class_weights", [None, CLASS_WEIGHTS])
@pytest.mark.parametrize("term", PIXEL, ids=lambda term: term.name)
def test_terms_of_pixels_follow_their_definition(term: Term, class_weights: Tensor | None, smoothing: float) -> None:
    logits, targets = drawn(3, 5, 7)
    expected = twin_of_pixels(logits, targets, term, [1.0] * C if class_weights is None else class_weights.tolist(), smoothing)
    assert float(loss(logits, targets, [term], class_weights=class_weights, smoothing=smoothing)) == pytest.approx(expected, rel=1e-6)
    assert float(loss(logits.double(), targets, [term], class_weights=class_weights, smoothing=smoothing)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", IMAGE_TERMS)
def test_terms_of_images_follow_their_definition(name: str) -> None:
    logits, targets = drawn(4, 5, 7)
    expected = twin_of_images(logits, targets, name)
    assert float(loss(logits, targets, [Term(name)])) == pytest.approx(expected, rel=1e-6)
    assert float(loss(logits.double(), targets, [Term(name)])) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("class_weights", [None, CLASS_WEIGHTS])
def test_cross_entropy_and_its_gradient_are_torchs(class_weights: Tensor | None, smoothing: float) -> None:
    logits, targets = drawn(3, 9, 8)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    mean = loss(ours, targets.to(torch.uint8), [Term("cross_entropy")], class_weights=class_weights, smoothing=smoothing)
    expected = F.cross_entropy(theirs, targets, weight=class_weights, ignore_index=IGNORED, label_smoothing=smoothing)
    torch.testing.assert_close(mean, expected)
    mean.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_dice_and_its_gradient_are_those_of_segmentation_models_for_each_image() -> None:
    logits, targets = drawn(4, 9, 8, torch.float64)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    mean = loss(ours, targets, [Term("dice")])
    parts = []
    for image in (0, 2, 3):  # 1 has no valid pixel
        present = [c for c in targets[image].unique().tolist() if c != IGNORED]  # theirs takes the mean over all classes, an absent one giving 0
        parts.append(DiceLoss("multiclass", classes=present, ignore_index=IGNORED)(theirs[image : image + 1], targets[image : image + 1]))
    expected = torch.stack(parts).mean()
    torch.testing.assert_close(mean, expected)
    mean.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_lovasz_and_its_gradient_are_those_of_segmentation_models_for_each_image() -> None:
    logits, targets = drawn(4, 9, 8)  # theirs knows float32 alone, and takes differences of Jaccard indices
    some = [0, 2, 3]  # theirs counts an image without a valid pixel as one with loss 0
    ours, theirs = logits.clone().requires_grad_(), logits[some].clone().requires_grad_()
    mean = loss(ours, targets, [Term("lovasz")])
    expected = LovaszLoss("multiclass", per_image=True, ignore_index=IGNORED)(theirs, targets[some])
    torch.testing.assert_close(mean, expected)
    mean.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad[some], theirs.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("terms", LOSSES, ids=NAMES)
def test_gradients_are_the_derivative_of_the_loss(terms: list[Term]) -> None:
    logits, targets = drawn(2, 3, 3, torch.float64)
    assert torch.autograd.gradcheck(lambda z: loss(z, targets, terms, smoothing=0.1), logits.requires_grad_())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("class_weights", [None, CLASS_WEIGHTS])
@pytest.mark.parametrize("terms", LOSSES, ids=NAMES)
def test_a_window_has_one_gradient_however_it_is_cut(terms: list[Term], class_weights: Tensor | None, dtype: torch.dtype, tolerance: float) -> None:
    logits, targets = drawn(6, 33, 31, dtype)
    weights = window_weights(targets, terms, ignored=IGNORED, class_weights=class_weights)
    found = []
    for cut in ([6], [4, 2], [1] * 6):
        whole, value = logits.clone().requires_grad_(), 0.0
        for z, y in zip(whole.split(cut), targets.split(cut), strict=True):
            part = loss(z, y, terms, class_weights=class_weights, smoothing=0.1, weights=weights)
            part.backward()
            value += float(part.detach())
        found.append((whole.grad, value))
    for gradient, value in found[1:]:
        assert float((gradient - found[0][0]).norm() / found[0][0].norm()) < tolerance
        assert value == pytest.approx(found[0][1], rel=tolerance)


def test_a_sum_is_each_terms_own_mean_times_its_factor() -> None:
    logits, targets = drawn(4, 6, 6, torch.float64)
    alone = [float(loss(logits, targets, [Term(term.name)], class_weights=CLASS_WEIGHTS)) for term in SUM]
    together = float(loss(logits, targets, SUM, class_weights=CLASS_WEIGHTS))
    assert together == pytest.approx(sum(term.weight * value for term, value in zip(SUM, alone, strict=True)), rel=1e-12)


def test_weights_count_valid_pixels_their_class_weights_and_images() -> None:
    targets = torch.tensor([[[0, 1], [IGNORED, 1]], [[IGNORED] * 2] * 2, [[3, IGNORED], [IGNORED] * 2]], dtype=torch.uint8)
    assert window_weights(targets, SUM, ignored=IGNORED, class_weights=None) == Weights(pixels=4.0, images=2.0, total=4.0)
    weighted = window_weights(targets, SUM, ignored=IGNORED, class_weights=torch.tensor([0.5, 1.0, 9.0, 0.25]))
    assert weighted == Weights(pixels=2.75, images=2.0, total=2.75)
    assert window_weights(targets, IMAGE, ignored=IGNORED, class_weights=None) == Weights(pixels=4.0, images=2.0, total=2.0)


@pytest.mark.parametrize("class_weights", [None, CLASS_WEIGHTS])
@pytest.mark.parametrize("terms", LOSSES, ids=NAMES)
def test_a_window_without_a_valid_pixel_has_loss_and_gradient_zero(terms: list[Term], class_weights: Tensor | None) -> None:
    logits, targets = torch.randn(2, C, 3, 3, requires_grad=True), torch.full((2, 3, 3), IGNORED)
    weights = window_weights(targets, terms, ignored=IGNORED, class_weights=class_weights)
    value = loss(logits, targets, terms, class_weights=class_weights, smoothing=0.1, weights=weights)
    value.backward()
    assert weights.total == 1.0
    assert float(value.detach()) == 0.0
    assert logits.grad is not None
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("terms", LOSSES, ids=NAMES)
def test_ignored_pixels_and_images_have_no_gradient_and_no_say(terms: list[Term]) -> None:
    logits, targets = drawn(3, 6, 6)
    logits.requires_grad_()
    value = loss(logits, targets, terms, smoothing=0.1)
    value.backward()
    nowhere = (targets == IGNORED).unsqueeze(1).expand_as(logits)
    assert not logits.grad[nowhere].any()
    assert logits.grad[~nowhere].abs().sum() > 0
    elsewhere = torch.where(nowhere, logits.detach().flip(0) * 3.0, logits.detach())
    assert float(loss(elsewhere, targets, terms, smoothing=0.1)) == float(value.detach())


def test_pixels_of_classes_without_weight_leave_the_other_terms_alone() -> None:
    logits, targets = drawn(1, 4, 4)
    targets[:] = 2
    weights = window_weights(targets, SUM, ignored=IGNORED, class_weights=torch.tensor([1.0, 1.0, 0.0, 1.0]))
    assert weights == Weights(pixels=0.0, images=1.0, total=1.0)
    value = loss(logits, targets, SUM, class_weights=torch.tensor([1.0, 1.0, 0.0, 1.0]), smoothing=0.1)
    assert float(value) == pytest.approx(float(loss(logits, targets, SUM[1:])), rel=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("name", ["focal", "poly1_focal"])
def test_focal_gradients_are_finite_where_the_model_is_certain(name: str, gamma: float) -> None:
    logits = torch.zeros(1, C, 2, 2)
    logits[:, 0], logits[:, 1] = 200.0, -200.0
    targets = torch.tensor([[[0, 0], [1, IGNORED]]])
    value = loss(logits.requires_grad_(), targets, [Term(name, gamma=gamma)])
    value.backward()
    assert math.isfinite(float(value.detach()))
    assert torch.isfinite(logits.grad).all()


def test_focal_without_gamma_and_poly1_without_epsilon_are_cross_entropy() -> None:
    logits, targets = drawn(2, 5, 5)
    expected = float(loss(logits, targets, [Term("cross_entropy")]))
    for term in (Term("focal", gamma=0.0), Term("poly1", epsilon=0.0), Term("poly1_focal", gamma=0.0, epsilon=0.0)):
        assert float(loss(logits, targets, [term])) == pytest.approx(expected, rel=1e-6)


def test_half_precision_logits_are_computed_in_float32_and_get_their_gradient() -> None:
    logits, targets = drawn(3, 6, 6)
    half = logits.bfloat16().requires_grad_()
    value = loss(half, targets, SUM)
    value.backward()
    assert value.dtype == torch.float32
    assert half.grad.dtype == torch.bfloat16
    assert float(value.detach()) == float(loss(logits.bfloat16().float(), targets, SUM))


def test_large_sums_keep_the_precision_of_float32() -> None:
    """Two images of 512 x 512 pixels: one running sum in float32 would be off by some 4e-5."""
    logits, targets = drawn(2, 512, 512)
    targets[1] = targets[0].flip(0)
    for terms in LOSSES:
        assert float(loss(logits, targets, terms)) == pytest.approx(float(loss(logits.double(), targets, terms)), rel=3e-7), terms


def test_a_name_that_is_no_loss_is_answered_with_those_there_are() -> None:
    with pytest.raises(
        UsageError, match=re.escape("'lovazs' is no loss over masks; there are cross_entropy, poly1, focal, poly1_focal, dice, lovasz. Did you mean 'lovasz'?")
    ):
        Term("lovazs")


def test_targets_that_are_no_class_are_named_with_their_count() -> None:
    targets = torch.tensor([[[0, 7], [7, 9]], [[1, 2], [IGNORED, 3]]], dtype=torch.uint8)
    message = re.escape("targets hold 7 (2 pixels), 9 (1 pixels); with 4 classes they go from 0 to 3, and 255 where a pixel is ignored")
    with pytest.raises(DataError, match=message):
        loss(torch.zeros(2, C, 2, 2), targets, [Term("focal")])
    with pytest.raises(DataError, match=message):
        loss(torch.zeros(2, C, 2, 2), targets, [Term("dice")])
    with pytest.raises(DataError, match=message):
        window_weights(targets, PIXEL, ignored=IGNORED, class_weights=CLASS_WEIGHTS)


@pytest.mark.parametrize(
    ("logits", "targets", "class_weights", "message"),
    [
        ((2, C, 3, 3), torch.zeros(2, 3, 4, dtype=torch.int64), None, "logits (B, C, H, W) and targets (B, H, W), got (2, 4, 3, 3) and (2, 3, 4)"),
        ((2, C, 3), torch.zeros(2, 3, dtype=torch.int64), None, "logits (B, C, H, W) and targets (B, H, W), got (2, 4, 3) and (2, 3)"),
        ((2, C, 3, 3), torch.zeros(2, 3, 3), None, "targets are class indices, int64 or uint8, got torch.float32"),
        ((2, C, 3, 3), torch.zeros(2, 3, 3, dtype=torch.uint8), torch.ones(5), "class_weights holds one number for each of 4 classes, got (5,)"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(logits: tuple[int, ...], targets: Tensor, class_weights: Tensor | None, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        loss(torch.zeros(logits), targets, PIXEL, class_weights=class_weights, weights=Weights(1.0, 1.0, 1.0))


def test_settings_that_would_do_nothing_are_refused() -> None:
    with pytest.raises(
        UsageError, match="class weights are for cross_entropy, poly1, focal, poly1_focal; dice, lovasz gives every class of an image the same share"
    ):
        check_terms(IMAGE, class_weights=CLASS_WEIGHTS, label_smoothing=0.0)
    with pytest.raises(UsageError, match="label smoothing is for cross_entropy and poly1; focal would not see it: add one of those, or set it to 0"):
        check_terms([Term("focal")], class_weights=None, label_smoothing=0.1)
    with pytest.raises(UsageError, match="a loss needs at least one term"):
        check_terms([], class_weights=None, label_smoothing=0.0)
    check_terms(SUM, class_weights=CLASS_WEIGHTS, label_smoothing=0.1)


def test_median_frequency_weights_follow_the_definition_in_float64() -> None:
    pixels = torch.randint(1, 1000, (7, 6), generator=GENERATOR) * (torch.rand(7, 6, generator=GENERATOR) < 0.6)
    pixels[:, 4] = 0
    frequency = {}
    for c in (0, 1, 2, 3, 5):
        shown = [row for row in pixels.tolist() if row[c]]
        frequency[c] = sum(row[c] for row in shown) / sum(sum(row) for row in shown)
    median = statistics.median(frequency.values())
    expected = [median / frequency[c] if c in frequency else 0.0 for c in range(6)]
    assert median_frequency_weights(pixels).tolist() == pytest.approx(expected, rel=1e-6)


def test_the_median_of_an_even_number_of_classes_lies_between_the_middle_two() -> None:
    assert median_frequency_weights(torch.tensor([[1, 3]])).tolist() == pytest.approx([0.5 / 0.25, 0.5 / 0.75])


def test_a_class_of_few_images_is_not_rare_where_it_fills_them() -> None:
    pixels = torch.tensor([[50, 50, 0], [50, 0, 50], [50, 0, 50], [50, 0, 50]])
    assert median_frequency_weights(pixels).tolist() == [1.0, 1.0, 1.0]
    assert balanced_class_weights(pixels.sum(0))[1] > balanced_class_weights(pixels.sum(0))[2]


def test_no_labelled_pixel_gives_no_class_a_weight() -> None:
    assert median_frequency_weights(torch.zeros(3, 4, dtype=torch.int64)).tolist() == [0.0] * 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("terms", LOSSES, ids=NAMES)
def test_the_gpu_agrees_with_the_cpu_and_with_itself(terms: list[Term]) -> None:
    """No operation without a deterministic form, which would be an error here as a warning; two passes have the same bits."""
    logits, targets = drawn(4, 65, 63)
    weights = window_weights(targets, terms, ignored=IGNORED, class_weights=CLASS_WEIGHTS)
    gradients = []
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        for device in ("cuda", "cuda", "cpu"):
            z = logits.to(device).detach().requires_grad_()
            loss(z, targets.to(device), terms, class_weights=CLASS_WEIGHTS.to(device), smoothing=0.1, weights=weights).backward()
            gradients.append(z.grad.cpu())
    finally:
        torch.use_deterministic_algorithms(before)
    assert torch.equal(gradients[0], gradients[1])
    assert float((gradients[0] - gradients[2]).norm() / gradients[2].norm()) < 1e-5


@pytest.mark.parametrize(
    "names", [["cross_entropy"], ["poly1"], ["focal"], ["poly1_focal"], ["dice"], ["lovasz"], ["poly1", "dice"], ["poly1", "dice", "lovasz"]]
)
def test_what_a_loss_keeps_for_the_backward_pass_is_counted(names):
    for C in (2, 11, 40):
        logits, masks = torch.randn(2, C, 32, 32, requires_grad=True), torch.randint(0, C, (2, 32, 32))
        terms, kept = [Term(name) for name in names], {}
        weights = window_weights(masks, terms, ignored=255, class_weights=None)

        def keep(tensor, kept=kept):
            kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            pixel_loss(logits, masks, terms, ignored=255, class_weights=None, label_smoothing=0.0, weights=weights)
        assert kept_floats(terms, C) == pytest.approx(sum(kept.values()) / (4 * 2 * 32 * 32), rel=0.1)
