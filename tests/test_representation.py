"""Representations against slow float64 twins, scikit-learn and SciPy; what is said of made-up curves of epochs."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import scipy.spatial.distance
import scipy.stats
from sklearn.neighbors import KNeighborsClassifier

from pellucid import representation
from pellucid.representation import alignment, effective_rank, fit_probe, knn_votes, spread, uniformity, unit_rows


def points(n: int, dims: int, seed: int = 0, offset: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, dims)).astype(np.float32) + np.float32(offset)


def unit(row: np.ndarray) -> np.ndarray:
    """The twin's unit vector."""
    length = math.sqrt(sum(float(x) ** 2 for x in row))
    return np.array([float(x) / length if length else 0.0 for x in row])


# ── on the sphere ──


def test_spread_is_its_definition() -> None:
    given = points(23, 7, offset=0.4)
    given[5] = 0.0
    rows, deviations = [unit(row) for row in given], []
    for d in range(7):
        column = [row[d] for row in rows]
        mean = sum(column) / 23
        deviations.append(math.sqrt(sum((x - mean) ** 2 for x in column) / 23))
    assert spread(given) == pytest.approx(sum(deviations) / 7 * math.sqrt(7), abs=1e-12)


def test_spread_is_one_on_the_sphere_and_zero_in_a_point() -> None:
    assert spread(points(20_000, 64)) == pytest.approx(1.0, abs=0.002)
    assert spread(np.repeat(points(1, 64), 50, axis=0) * np.arange(1, 51)[:, None]) == pytest.approx(0.0, abs=1e-12)
    assert spread(points(500, 64, offset=20.0)) < 0.06


def test_length_of_a_row_changes_nothing() -> None:
    given, lengths = points(40, 6), np.random.default_rng(1).uniform(0.1, 9.0, (40, 1))
    for measure in (spread, effective_rank, uniformity):
        assert measure(given * lengths) == pytest.approx(measure(given), abs=1e-9)
    assert np.linalg.norm(unit_rows(np.array([[1e-200, 1e-200], [1e200, -1e200], [0.0, 0.0]])), axis=1) == pytest.approx([1.0, 1.0, 0.0])


def test_effective_rank_is_the_entropy_of_the_singular_values() -> None:
    given = points(30, 5, offset=0.5)
    rows = np.stack([unit(row) for row in given])
    values = np.sqrt(np.linalg.eigvalsh(rows.T @ rows))  # not the path of the code
    shares = values / values.sum()
    assert effective_rank(given) == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)), abs=1e-9)


def test_effective_rank_counts_directions() -> None:
    assert effective_rank(np.tile(np.eye(6), (9, 1))) == pytest.approx(6.0, abs=1e-9)
    line = points(1, 40) * points(200, 1)  # both ways along one direction
    assert effective_rank(line) == pytest.approx(1.0, abs=1e-4)
    plane = points(200, 3) @ points(3, 40, seed=1)
    assert 2.0 < effective_rank(plane) <= 3.0 + 1e-3


def test_a_collapsed_cloud_beside_the_origin_has_a_low_rank() -> None:
    noise = 1e-3 * points(300, 50)
    cloud = noise + points(1, 50, seed=1)
    assert effective_rank(cloud) < 1.2
    assert effective_rank(cloud - cloud.mean(axis=0)) > 40  # what centring would have said


def test_alignment_is_the_mean_squared_distance_of_unit_vectors() -> None:
    first, second = points(17, 5), points(17, 5, seed=1)
    twin = sum(float(((unit(a) - unit(b)) ** 2).sum()) for a, b in zip(first, second, strict=True)) / 17
    assert alignment(first, second) == pytest.approx(twin, abs=1e-12)
    assert alignment(first, 3 * first) == pytest.approx(0.0, abs=1e-12)
    assert alignment(first, -first) == pytest.approx(4.0, abs=1e-12)


@pytest.mark.parametrize("t", [0.5, 2.0])
def test_uniformity_is_the_log_of_the_mean_over_pairs(t: float) -> None:
    given = points(31, 4, offset=0.3)
    rows = [unit(row) for row in given]
    kernels = [math.exp(-t * float(((rows[i] - rows[j]) ** 2).sum())) for i in range(31) for j in range(i + 1, 31)]
    assert uniformity(given, t=t) == pytest.approx(math.log(sum(kernels) / len(kernels)), abs=1e-12)


def test_uniformity_in_blocks_is_that_of_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    given = points(157, 8, offset=0.2)
    distances = scipy.spatial.distance.pdist(unit_rows(given), "sqeuclidean")
    for block in (1, 157 * 10, 157 * 50):
        monkeypatch.setattr(representation, "_BLOCK", block)
        assert uniformity(given) == pytest.approx(math.log(np.exp(-2 * distances).mean()), abs=1e-12)
    assert uniformity(np.ones((9, 3))) == 0.0


def test_uniformity_needs_no_room_for_all_pairs() -> None:
    import tracemalloc

    tracemalloc.start()
    uniformity(points(6000, 4))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 200e6  # 6000 x 6000 in float64 alone are 288 MB


def test_numbers_of_too_few_points_are_nan() -> None:
    assert all(math.isnan(value) for value in (spread(points(1, 4)), spread(points(0, 4)), uniformity(points(1, 4)), alignment(points(0, 4), points(0, 4))))
    assert math.isnan(effective_rank(np.zeros((5, 3))))
    assert effective_rank(points(1, 4)) == pytest.approx(1.0)


def test_shapes_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match=r"expected a table \(points, dimensions\), got shape \(4,\)"):
        spread(np.ones(4))
    with pytest.raises(ValueError, match=r"two views of the same images, got shapes \(3, 4\) and \(2, 4\)"):
        alignment(points(3, 4), points(2, 4))
    with pytest.raises(ValueError, match=r"got \(3, 4\), \(5, 3\) and \(5,\)"):
        knn_votes(points(3, 4), points(5, 3), np.zeros(5, np.int64), 2, 3, 0.1)
    with pytest.raises(ValueError, match=r"got \(3, 4\), \(0, 4\) and \(0,\)"):
        fit_probe(points(0, 4), np.zeros(0, np.int64), points(3, 4), 2)
    with pytest.raises(ValueError, match="labels from 0 to 1, got 0 to 2"):
        fit_probe(points(3, 4), np.arange(3), points(3, 4), 2)
    with pytest.raises(ValueError, match="at least one neighbour and a temperature above 0, got 3 and 0"):
        knn_votes(points(3, 4), points(5, 4), np.zeros(5, np.int64), 2, 3, 0.0)


# ── votes ──


@pytest.mark.parametrize(("neighbours", "temperature"), [(1, 0.07), (5, 0.07), (20, 0.5), (60, 0.1), (500, 0.1)])
def test_votes_are_those_of_scikit_learn(neighbours: int, temperature: float) -> None:
    queries, bank = points(40, 6, offset=0.2), points(60, 6, seed=1)
    labels = np.random.default_rng(2).integers(0, 4, 60)
    labels[:4] = np.arange(4)
    oracle = KNeighborsClassifier(
        min(neighbours, 60), metric="cosine", algorithm="brute", weights=lambda distances: np.exp((1.0 - distances) / temperature)
    ).fit(bank.astype(np.float64), labels)
    votes = knn_votes(queries, bank, labels, 4, neighbours, temperature)
    assert votes == pytest.approx(oracle.predict_proba(queries.astype(np.float64)), abs=1e-9)
    assert votes.sum(axis=1) == pytest.approx(np.ones(40), abs=1e-12)
    assert votes.argmax(axis=1).tolist() == oracle.predict(queries.astype(np.float64)).tolist()


def test_of_equally_similar_ones_the_lower_row_of_the_bank_votes() -> None:
    bank = np.repeat(points(1, 37), 50, axis=0)
    bank[10] *= 4.0  # the same direction
    labels = np.array([2, 1, 0] + [1] * 47)
    assert knn_votes(bank[:1], bank, labels, 3, 1, 0.07).tolist() == [[0.0, 0.0, 1.0]]
    assert knn_votes(bank[:1], bank, labels, 3, 4, 0.07)[0] == pytest.approx([0.25, 0.5, 0.25])
    even = knn_votes(bank[:1], bank, labels, 3, 3, 0.07)
    assert int(even.argmax()) == 0, "of equal votes the first class"


def test_votes_do_not_depend_on_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, bank, labels = points(33, 5), points(80, 5, seed=1), np.random.default_rng(2).integers(0, 3, 80)
    whole = knn_votes(queries, bank, labels, 3, 7, 0.1)
    monkeypatch.setattr(representation, "_BLOCK", 80 * 4)
    assert knn_votes(queries, bank, labels, 3, 7, 0.1) == pytest.approx(whole, abs=1e-9)


def test_a_very_low_temperature_neither_overflows_nor_loses_the_votes() -> None:
    queries, bank, labels = points(9, 5), points(30, 5, seed=1), np.arange(30) % 3
    votes = knn_votes(queries, bank, labels, 3, 10, 1e-5)
    nearest = labels[(unit_rows(queries) @ unit_rows(bank).T).argmax(axis=1)]
    assert votes.argmax(axis=1).tolist() == nearest.tolist()
    assert knn_votes(np.zeros((1, 5)), bank, labels, 3, 30, 1e-5)[0] == pytest.approx([1 / 3] * 3)  # no direction: similar to all alike


# ── the linear probe ──


def classes(n: int, dims: int, num_classes: int, distance: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features of classes around their means, and labels."""
    random = np.random.default_rng(seed)
    labels = np.arange(n) % num_classes
    return (np.random.default_rng(99).normal(size=(num_classes, dims))[labels] * distance + random.normal(size=(n, dims))).astype(np.float32), labels


def penalised_loss(flat: np.ndarray, x: np.ndarray, hot: np.ndarray, strength: float) -> float:
    """sum of cross-entropies + |w|^2 / (2 C), C = strength / D: what the probe minimises, from its definition."""
    (_, D), C = x.shape, hot.shape[1]
    weights, bias = flat[: D * C].reshape(D, C), flat[D * C :]
    logits = x @ weights + bias
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return float(-(hot * log_p).sum() + D / strength * (weights**2).sum() / 2)


@pytest.mark.parametrize("num_classes", [2, 3])
def test_the_probe_is_the_minimum_of_its_penalised_loss(num_classes: int) -> None:
    bank, labels = classes(40, 3, num_classes, 1.0)
    queries = points(6, 3, seed=5)
    found = fit_probe(bank, labels, queries, num_classes)
    mean, deviation = bank.astype(np.float64).mean(axis=0), bank.astype(np.float64).std(axis=0)
    x, asked, hot = (bank - mean) / deviation, (queries - mean) / deviation, np.eye(num_classes)[labels]
    least = scipy.optimize.minimize(penalised_loss, np.zeros(4 * num_classes), (x, hot, found.strength), method="BFGS", options={"gtol": 1e-3})
    twin = asked @ least.x[: 3 * num_classes].reshape(3, num_classes) + least.x[3 * num_classes :]
    difference = (found.logits - found.logits.mean(axis=1, keepdims=True)) - (twin - twin.mean(axis=1, keepdims=True))
    assert np.abs(difference).max() < 5e-3


def test_the_strength_is_chosen_on_held_out_images_of_the_bank() -> None:
    easy, hard = classes(400, 10, 4, 3.0), classes(400, 40, 4, 0.05)
    assert fit_probe(*easy, easy[0], 4).strength == representation.STRENGTHS[-1]
    assert fit_probe(*hard, hard[0], 4).strength == representation.STRENGTHS[0]
    assert "(chosen of 3 on 80 of them)" in fit_probe(*easy, easy[0], 4).note


def test_queries_change_neither_the_fit_nor_each_other() -> None:
    (bank, labels), queries = classes(60, 8, 3, 1.0), points(20, 8, seed=5)
    whole = fit_probe(bank, labels, queries, 3).logits
    assert fit_probe(bank, labels, queries[:1], 3).logits == pytest.approx(whole[:1], abs=1e-12)
    assert (fit_probe(bank, labels, queries, 3).logits == whole).all(), "the same bits again"


def test_scale_and_offset_of_features_change_nothing_and_constant_ones_are_left_out() -> None:
    (bank, labels), queries = classes(60, 8, 3, 1.0), points(20, 8, seed=5)
    whole = fit_probe(bank, labels, queries, 3).logits
    scale, offset = np.logspace(-3, 3, 8), np.linspace(-50, 50, 8)
    assert fit_probe(bank * scale + offset, labels, queries * scale + offset, 3).logits == pytest.approx(whole, abs=1e-4)
    with_constant = [np.concatenate([part, np.full((len(part), 1), value)], axis=1) for part, value in ((bank, 0.1), (queries, 7.0))]
    logits = fit_probe(with_constant[0], labels, with_constant[1], 3).logits
    assert logits.argmax(axis=1).tolist() == whole.argmax(axis=1).tolist()
    assert np.abs(logits).max() < 100


def test_classes_that_the_bank_lacks_are_never_predicted() -> None:
    bank, labels = classes(60, 8, 3, 1.0)
    logits = fit_probe(bank, np.array([0, 2, 5])[labels], points(50, 8, seed=5), 7).logits
    lowest = logits[:, [0, 2, 5]].min(axis=1)
    assert np.isfinite(logits).all()
    assert set(logits.argmax(axis=1).tolist()) == {0, 2, 5}
    for absent in (1, 3, 4, 6):
        assert logits[:, absent] == pytest.approx(lowest - representation.ABSENT_BELOW)


def test_a_bank_of_one_class_predicts_it_and_says_so() -> None:
    found = fit_probe(points(6, 4), np.full(6, 2), points(3, 4, seed=1), 4)
    assert found.logits.argmax(axis=1).tolist() == [2, 2, 2]
    assert found.note == "nothing was fitted: all 6 images of the bank are of class 2"


def test_a_bank_too_small_to_choose_takes_the_middle_strength() -> None:
    found = fit_probe(points(6, 4), np.arange(6) % 2, points(3, 4, seed=1), 2)
    assert found.strength == 3.0
    assert "(no class has the five images to choose it)" in found.note


def test_a_probe_that_did_not_converge_says_so_without_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    bank, labels = classes(200, 30, 4, 0.5)
    assert ", converged in " in fit_probe(bank, labels, bank, 4).note
    monkeypatch.setattr(representation, "PROBE_STEPS", 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "NOT converged in 3 steps of L-BFGS" in fit_probe(bank, labels, bank, 4).note


@pytest.mark.proof
def test_a_probe_of_full_size_converges_in_a_minute() -> None:
    import time

    bank, labels = classes(5000, 2048, 64, 0.03)
    begin = time.perf_counter()
    found = fit_probe(bank, labels, bank[:10], 64)
    assert ", converged in " in found.note
    assert time.perf_counter() - begin < 60


# ── what the epochs say ──


def epochs(spreads: list[float], ranks: list[float], knn: list[float | None] | None = None, n: int = 640) -> list[dict[str, Any]]:
    """A history with 128 dimensions and 64 classes, 30 steps an epoch."""
    lines: list[dict[str, Any]] = []
    for epoch, (wide, rank) in enumerate(zip(spreads, ranks, strict=True)):
        lines.append({"epoch": epoch, "step": 30 * epoch, "spread": wide, "rank": rank, "num_dims": 128, "num_images": 256})
        if knn is not None and knn[epoch] is not None:
            lines[-1] |= {"knn_accuracy": knn[epoch], "knn_n": n, "chance": 1 / 64}
    return lines


def diagnose(history: list[dict[str, Any]]) -> tuple[str, ...]:
    return representation.diagnose(history, remedies="this and that")


def test_healthy_runs_and_empty_histories_are_left_in_peace() -> None:
    assert diagnose([]) == ()
    assert diagnose(epochs([0.2], [2.0])) == (), "an untrained network is no collapse"
    assert diagnose(epochs([0.3] + [0.86] * 7, [4.0] + [60.0] * 7, [0.05, 0.08, 0.1, 0.12, 0.13, 0.14, 0.15, 0.16])) == ()


@pytest.mark.parametrize(("wide", "rank"), [(0.06, 14.0), (0.26, 30.0), (0.7, 1.3)])
def test_a_collapse_is_named_with_its_epoch_both_numbers_and_remedies(wide: float, rank: float) -> None:
    (line,) = diagnose(epochs([0.9, 0.85, wide, wide], [80.0, 60.0, rank, rank], [0.05, 0.06, 0.05, 0.05]))
    assert line.startswith("collapse: since epoch 2 ")
    assert f"in epoch 3 their spread is {wide:.4f} and their effective rank {rank:.4f} of 128 dimensions (before the first step 0.9000 and 80.0000)" in line
    assert "Healthy is a spread of at least 0.3, usually above 0.8, and a rank of at least 3.6." in line
    assert line.endswith("What helps: this and that.")


def test_nothing_is_judged_before_running_statistics_have_settled() -> None:
    """Spread of a healthy SimCLR after 3 steps, measured: 0.277 of 0.339 before the first; and three evaluations without a gain within 29 steps."""
    short = epochs([0.339] + [0.277] * 6, [60.0] * 7, [0.1] * 7)
    for line in short:
        line["step"] = min(3 * line["epoch"], 29)
    assert diagnose(short) == ()
    early = [line | {"spread": 0.8} for line in short]
    early[-1]["step"] = 30
    assert diagnose(early) == (), "one settled evaluation is not three"
    short[-1]["step"] = 30
    assert diagnose(short)[0].startswith("collapse: since epoch 6 ")


@pytest.mark.parametrize(("images", "floor"), [(40, 1.8), (256, 3.6), (None, 3.6)])
def test_the_rank_of_a_collapse_is_by_the_images_that_were_watched(images: int | None, floor: float) -> None:
    history = epochs([0.8, 0.8], [20.0, floor - 0.1])
    for line in history:
        line |= {"num_images": images, "knn_n": 640}
        if images is None:
            del line["num_images"]
    assert f"a rank of at least {floor}." in diagnose(history)[0]
    history[-1]["rank"] = floor + 0.1
    assert diagnose(history) == ()


def test_a_collapse_that_is_over_is_not_told_and_a_second_one_has_its_own_epoch() -> None:
    spreads, ranks = [0.9, 0.1, 0.1, 0.8, 0.8, 0.2], [60.0] * 6
    assert diagnose(epochs(spreads[:5], ranks[:5])) == ()
    assert diagnose(epochs(spreads, ranks))[0].startswith("collapse: since epoch 5 ")
    assert diagnose(epochs(spreads[:3], ranks[:3]))[0].startswith("collapse: since epoch 1 ")


def test_a_network_that_began_low_and_climbs_has_not_collapsed() -> None:
    spreads, ranks = [0.12, 0.2, 0.28, 0.295, 0.5], [2.2, 3.0, 3.5, 4.0, 9.0]
    assert [diagnose(epochs(spreads[:k], ranks[:k])) for k in range(1, 6)] == [()] * 5
    assert diagnose(epochs([0.12, 0.2, 0.201], [60.0] * 3))[0].startswith("collapse: since epoch 2 "), "it stopped where a collapse is"
    assert diagnose(epochs([0.12, 0.05], [60.0] * 2))[0].startswith("collapse: since epoch 1 ")


def test_epochs_whose_projections_diverged_say_nothing_of_collapse() -> None:
    nan = math.nan
    assert diagnose(epochs([0.9, nan, nan], [60.0, nan, nan])) == ()
    assert diagnose([*epochs([0.9], [60.0]), {"epoch": 1, "step": 30, "spread": None, "rank": None, "num_dims": 128}]) == ()
    assert diagnose(epochs([0.9, 0.1, nan], [60.0, 60.0, nan]))[0].startswith("collapse: since epoch 1 ")


def test_flat_features_under_a_healthy_spread_are_not_called_a_collapse() -> None:
    (line,) = diagnose(epochs([0.8] * 6, [60.0] * 6, [0.10, 0.11, None, 0.10, None, 0.11]))
    assert line.startswith("flat features, not collapse: the spread of the projections is healthy (0.8000), but since epoch 1 no evaluation shows the k-NN ")
    assert "above that of the network that training began with: 0.1100 in epoch 5, before the first step 0.1000, chance 0.0156; difference -0.02" in line
    assert "(95 % Newcombe interval over 640 images): a gain of 0.05 is ruled out. What helps" in line
    for remedy in ("more epochs", "augmentations", "background", "learning rate"):
        assert remedy in line


def test_flat_needs_five_epochs_three_evaluations_and_an_untrained_one() -> None:
    flat = epochs([0.8] * 8, [60.0] * 8, [0.1] * 8)
    assert diagnose(flat[:5]) == ()
    assert len(diagnose(flat[:6])) == 1
    assert diagnose(epochs([0.8] * 8, [60.0] * 8, [0.1, None, None, None, None, None, 0.1, 0.1])) == ()
    assert diagnose(flat[1:]) == ()
    assert diagnose(epochs([0.8] * 8, [60.0] * 8)) == ()


def test_what_was_learned_and_lost_is_flat_since_it_was_lost() -> None:
    curve: list[float | None] = [0.1, 0.2, 0.3, 0.3, 0.12, 0.12, 0.11]
    assert "since epoch 4 no evaluation shows the k-NN accuracy above" in diagnose(epochs([0.8] * 7, [60.0] * 7, curve))[0]
    curve[-1] = 0.01
    assert ": the features have become worse. What helps" in diagnose(epochs([0.8] * 7, [60.0] * 7, curve))[0]


def flat(rights: list[int], n: int) -> bool:
    """Whether features are called flat of which so many of n images were right, evaluation by evaluation."""
    return bool(diagnose(epochs([0.8] * len(rights), [60.0] * len(rights), [right / n for right in rights], n)))


@pytest.mark.parametrize("n", [640, 10000])
def test_features_are_flat_only_where_newcombes_interval_rules_out_a_useful_gain_and_holds_zero(n: int) -> None:
    """Newcombe 1998, method 10, by SciPy's Wilson intervals: a tenth of the images right at first; a gain is known sooner than its size with more images."""
    begun = n // 10

    def interval(right: int) -> tuple[float, float]:
        now, before = (scipy.stats.binomtest(k, n).proportion_ci(0.95, "wilson") for k in (right, begun))
        p, q = right / n, begun / n
        return p - q - math.hypot(p - now.low, before.high - q), p - q + math.hypot(now.high - p, q - before.low)

    rules = [(low <= 0, high < 0.05) for low, high in map(interval, range(begun + 1, 2 * begun))]
    first = next(i for i, holds in enumerate(rules) if not all(holds))
    assert [flat([begun] * 5 + [begun + 1 + i], n) for i in (first - 1, first)] == [True, False]
    assert rules[first] == ((True, False) if n == 640 else (False, True)), "which of the two ends it"


def test_few_images_are_not_said_to_know_what_they_cannot() -> None:
    assert not flat([6, 6, 6, 6, 6, 12], 40), "0.15 to 0.30: too few to show a gain, and too few to rule one out"
    assert not flat([12] * 5 + [13], 40)
    (line,) = diagnose(epochs([0.8] * 6, [60.0] * 6, [0.3] * 6, 40))
    assert ": no gain is seen, but one of 0.19" in line
    assert "cannot be ruled out with 40 images. What helps" in line


def test_a_collapse_explains_flat_features() -> None:
    (line,) = diagnose(epochs([0.8] + [0.1] * 6, [60.0] * 7, [0.1] * 7))
    assert line.startswith("collapse")
