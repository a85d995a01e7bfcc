"""Projections: their numbers beside scikit-learn's, their rules (no later epoch shows in an earlier panel), their bits."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from scipy.linalg import orthogonal_procrustes
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA
from sklearn.manifold import trustworthiness
from sklearn.metrics import silhouette_score
from sklearn.neighbors import NearestNeighbors

from pellucid.errors import UsageError
from pellucid.findings import ProjectionFinding
from pellucid.inside import neighbours as near
from pellucid.inside import projection, repulsion
from pellucid.inside.projection import Projection, project

METHODS = [("pca", "last"), ("pca", "each"), ("tsne", "last")]
NAMES = ["pca-last", "pca-each", "tsne"]


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def probe(n: int = 450, width: int = 64, separation: tuple[float, ...] = (0.0, 1.0, 2.0)) -> tuple[list[np.ndarray], np.ndarray]:
    """Features of three classes that part over the epochs; independent noise in each."""
    random = np.random.default_rng(7)
    labels = random.integers(0, 3, n)
    centres = random.standard_normal((3, width))
    return [(random.standard_normal((n, width)) + s * centres[labels]).astype(np.float32) for s in separation], labels


def made(features, labels, method: str = "pca", fit: str = "last", **options) -> Projection:
    return project(features, labels, epochs=range(1, len(features) + 1), method=method, fit=fit, seed=3, **options)


# ── the numbers ──


@pytest.mark.parametrize("width", [2, 40])
def test_neighbours_and_silhouette_are_scikit_learns(width: int) -> None:
    random = np.random.default_rng(0)
    x, labels = random.standard_normal((300, width)) + 5.0, random.integers(0, 4, 300)
    labels[0] = 9  # a class of one
    found = near.neighbourhood(near.centred(x), labels, k=12)
    distances, indices = NearestNeighbors(n_neighbors=12).fit(x).kneighbors()
    assert np.array_equal(found.indices, indices)
    np.testing.assert_allclose(found.distances, distances, rtol=2e-5)
    assert found.silhouette == pytest.approx(silhouette_score(x, labels), abs=1e-6)


@pytest.mark.parametrize(("width", "k"), [(2, 5), (40, 10)])
def test_trustworthiness_is_scikit_learns(width: int, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(1)
    x, plane = random.standard_normal((200, width)), random.standard_normal((200, 2))
    plane[:, 0] += x[:, 0]
    monkeypatch.setattr(near, "_BLOCK", 200 * 33)  # several blocks, the last one short
    shown = near.neighbourhood(near.centred(plane), np.zeros(200, np.int64), k=k).indices
    assert near.trustworthiness(near.centred(x), shown) == pytest.approx(trustworthiness(x, plane, n_neighbors=k), abs=1e-9)


def test_votes_and_kept_neighbours_are_their_definitions() -> None:
    random = np.random.default_rng(2)
    labels, indices, other = random.integers(0, 4, 60), random.integers(0, 60, (60, 5)), random.integers(0, 60, (60, 5))
    votes = []
    for row in indices:
        seen = [int(labels[j]) for j in row]
        most = max(seen.count(c) for c in seen)
        votes.append(next(c for c in seen if seen.count(c) == most))  # the nearest of those with the most votes
    assert near.knn_votes(indices, labels).tolist() == votes
    assert near.kept(indices, other).tolist() == [np.mean([j in b for j in a]) for a, b in zip(indices, other, strict=True)]


def test_equal_distances_go_to_the_lower_row() -> None:
    x = np.ones((9, 6)) * 0.1
    found = near.neighbourhood(near.centred(x), np.arange(9) // 5, k=3)
    assert found.indices.tolist()[:2] == [[1, 2, 3], [0, 2, 3]]
    assert not found.distances.any()
    assert found.silhouette == 0.0
    far = np.vstack([np.full((4, 6), 300.3), np.full((5, 6), 300.3) + np.eye(5, 6)])  # equal points away from the origin are still equal
    assert near.neighbourhood(near.centred(far), np.arange(9) // 5, k=3).indices[:4].tolist() == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]


def test_a_panel_holds_the_numbers_of_its_plane() -> None:
    features, labels = probe()
    found = made(features, labels, "pca", "each", neighbours=7, split="test")
    panel, plane = found.panels[1], found.coordinates[1]
    assert panel.epoch == 2
    assert panel.silhouette.value == pytest.approx(silhouette_score(features[1], labels), abs=1e-5)
    assert panel.plane_silhouette.value == pytest.approx(silhouette_score(plane, labels), abs=1e-5)
    assert panel.trustworthiness.value == pytest.approx(trustworthiness(features[1], plane, n_neighbors=7), abs=1e-6)
    inside = [NearestNeighbors(n_neighbors=7).fit(x).kneighbors(return_distance=False) for x in (features[1], plane)]
    assert panel.neighbours_kept.value == pytest.approx(np.mean([len(set(a) & set(b)) / 7 for a, b in zip(*inside, strict=True)]))
    assert panel.knn_accuracy.value == np.mean(near.knn_votes(inside[0], labels) == labels)
    assert panel.knn_accuracy.interval[0] < panel.knn_accuracy.value <= panel.knn_accuracy.interval[1]
    numbers = (panel.knn_accuracy, panel.silhouette, panel.plane_silhouette, panel.neighbours_kept, panel.trustworthiness)
    assert {(m.n, m.split, m.seed) for m in numbers} == {(450, "test", 3)}
    assert [m.unit for m in numbers] == ["fraction", "score", "score", "fraction", "fraction"]
    assert len({m.key for f in (found, made(features, labels)) for p in f.panels for m in (p.trustworthiness, p.plane_silhouette)}) == 12
    finding = TypeAdapter(ProjectionFinding)
    assert finding.validate_json(finding.dump_json(found.finding())) == found.finding()


# ── the planes ──


@pytest.mark.parametrize("shape", [(60, 20), (20, 60)])
def test_principal_directions_are_scikit_learns(shape: tuple[int, int]) -> None:
    x = np.random.default_rng(3).standard_normal(shape)
    found = projection.principal_directions(near.centred(x)).numpy().T
    expected = PCA(n_components=2, svd_solver="full").fit(x).components_
    assert np.abs(found - expected * np.sign((found * expected).sum(axis=1))[:, None]).max() < 1e-5
    assert (found[range(2), np.abs(found).argmax(axis=1)] > 0).all()


def test_pca_last_applies_the_directions_of_the_last_epoch() -> None:
    features, labels = probe()
    found = made([x + 4 for x in features], labels)
    axes = PCA(n_components=2, svd_solver="full").fit(features[-1]).components_
    for x, plane in zip(features, found.coordinates, strict=True):
        expected = (x - x.mean(axis=0)) @ axes.T
        np.testing.assert_allclose(np.abs(plane), np.abs(expected), atol=1e-3)


def test_a_turned_plane_is_turned_back() -> None:
    random = np.random.default_rng(4)
    plane = random.standard_normal((30, 2))
    plane -= plane.mean(axis=0)
    mirrored = plane @ np.array([[0.6, 0.8], [0.8, -0.6]])
    np.testing.assert_allclose(projection.procrustes(mirrored + 3, plane), plane, atol=1e-12)
    other = random.standard_normal((30, 2))
    other -= other.mean(axis=0)
    np.testing.assert_allclose(projection.procrustes(other, plane), other @ orthogonal_procrustes(other, plane)[0], atol=1e-12)


@pytest.mark.parametrize(("n", "scale"), [(1500, 0.3), (1500, 4.0), (1500, 30.0), (50, 4.0)])
def test_the_repulsion_is_the_sum_over_all_pairs(n: int, scale: float) -> None:
    points = np.random.default_rng(5).standard_normal((n, 2)) * scale
    away = points[:, None] - points[None]
    kernel = 1 / (1 + cdist(points, points) ** 2) - np.eye(len(points))
    force = (kernel[..., None] ** 2 * away).sum(axis=1)
    potential, push = repulsion.repulsion(points)
    assert np.abs(potential - kernel.sum(axis=1)).max() / kernel.sum(axis=1).mean() < 0.03
    assert np.linalg.norm(push - force) < 0.04 * np.linalg.norm(force)


def test_the_gradient_is_that_of_opentsne() -> None:
    from openTSNE.affinity import PerplexityBasedNN
    from openTSNE.tsne import kl_divergence_bh

    x = np.random.default_rng(6).standard_normal((600, 10))
    affinities = PerplexityBasedNN(x, perplexity=20, method="exact").P
    start = np.random.default_rng(7).standard_normal((600, 2)) * 6
    exact = kl_divergence_bh(start, affinities, 1, {"theta": 0.0}, should_eval_error=True)
    found = repulsion.gradient(start, affinities, 1, should_eval_error=True)
    assert found[0] == pytest.approx(exact[0], abs=0.01)
    assert np.linalg.norm(found[1] - exact[1]) < 0.02 * np.linalg.norm(exact[1])


@pytest.mark.parametrize(("method", "fit", "name"), [(*m, n) for m, n in zip(METHODS, NAMES, strict=True)])
def test_noise_stays_noise_in_the_first_panel(method: str, fit: str, name: str) -> None:
    features, labels = probe()
    found = made(features, labels, method, fit)
    first, last = found.panels[0], found.panels[-1]
    assert found.name == name
    assert abs(first.plane_silhouette.value - first.silhouette.value) < 0.05
    assert last.plane_silhouette.value > 0.5
    assert "parts classes more" not in found.how


@pytest.mark.parametrize(("method", "fit", "name"), [(*m, n) for m, n in zip(METHODS, NAMES, strict=True)])
def test_noise_of_many_classes_is_never_shown_further_apart(method: str, fit: str, name: str) -> None:
    """On a plane the silhouette of noise falls with the number of classes, so that only one side is a promise."""
    random, labels = np.random.default_rng(4), np.arange(600) % 12
    late = random.standard_normal((600, 40)) + 6 * random.standard_normal((12, 40))[labels]
    found = made([random.standard_normal((600, 40)), late], labels, method, fit)
    assert found.panels[0].plane_silhouette.value < found.panels[0].silhouette.value + 0.05
    assert found.panels[1].plane_silhouette.value > 0.2


def test_a_chain_backward_from_the_last_epoch_invents_classes() -> None:
    """The control of the test above: the same features, begun at the last epoch's layout at its full size, with scikit-learn's learning rate."""
    import openTSNE
    from openTSNE.nearest_neighbors import PrecomputedNeighbors

    features, labels = probe()
    last = made(features, labels, "tsne").coordinates[-1].astype(np.float64)
    known = near.neighbourhood(near.centred(features[0]), labels, k=90)
    index = PrecomputedNeighbors(known.indices, known.distances.astype(np.float64))
    begun = openTSNE.TSNEEmbedding(last, openTSNE.affinity.PerplexityBasedNN(knn_index=index, perplexity=30), negative_gradient_method="bh")
    plane = np.array(begun.optimize(250, learning_rate=50.0, momentum=0.8))
    assert silhouette_score(plane, labels) > silhouette_score(features[0], labels) + 0.05


@pytest.mark.parametrize(("method", "fit"), [("pca", "each"), ("tsne", "last")])
def test_no_epoch_sees_a_later_one(method: str, fit: str) -> None:
    features, labels = probe(n=150)
    whole = made(features, labels, method, fit)
    assert np.array_equal(made(features[:2], labels, method, fit).coordinates, whole.coordinates[:2])
    assert np.array_equal(made(features, np.roll(labels, 1), method, fit).coordinates, whole.coordinates)  # labels place nothing


def test_a_first_panel_that_parts_classes_says_so() -> None:
    features, labels = probe(separation=(0.3, 2.0), width=300)
    found = made(features, labels)
    assert found.panels[0].plane_silhouette.value > found.panels[0].silhouette.value + 0.05
    assert "The first panel parts classes more than the features do: silhouette 0." in found.how


@pytest.mark.parametrize(("method", "fit"), [("pca", "each"), ("tsne", "last")])
def test_each_plane_is_turned_onto_the_one_before(method: str, fit: str) -> None:
    features, labels = probe(n=150)
    planes = made(features, labels, method, fit).coordinates.astype(np.float64)
    for before, after in itertools.pairwise(planes):
        np.testing.assert_allclose(projection.procrustes(after, before), after - after.mean(axis=0), atol=1e-3)


def test_bits_do_not_depend_on_threads() -> None:
    features, labels = probe(n=300)
    one = made(features, labels, "tsne")
    torch.set_num_threads(2)
    two = made(features, labels, "tsne")
    assert np.array_equal(one.coordinates, two.coordinates)
    assert one.panels == two.panels


def test_half_precision_is_computed_in_single() -> None:
    features, labels = probe(n=100)
    half = [x.astype(np.float16) for x in features]
    half[0].setflags(write=False)
    assert np.array_equal(made(half, labels).coordinates, made([x.astype(np.float32) for x in half], labels).coordinates)
    assert made(half, labels).coordinates.dtype == np.float32


@pytest.mark.parametrize(("method", "fit"), METHODS)
def test_panels_share_square_axes(method: str, fit: str) -> None:
    features, labels = probe(n=80)
    found = made(features, labels, method, fit)
    left, right, bottom, top = found.limits
    assert right - left == pytest.approx(top - bottom)
    x, y = found.coordinates[..., 0], found.coordinates[..., 1]
    assert left < x.min() <= x.max() < right
    assert bottom < y.min() <= y.max() < top


# ── edges ──


@pytest.mark.parametrize(("method", "fit"), METHODS)
def test_few_points_one_class_and_constant_features_are_drawn(method: str, fit: str) -> None:
    random = np.random.default_rng(8)
    features = [np.full((5, 4), 0.1, np.float32), random.standard_normal((5, 4)).astype(np.float32), np.full((5, 4), 2.0, np.float32)]
    found = made(features, np.zeros(5, np.int64), method, fit)
    assert np.isfinite(found.coordinates).all()
    assert not found.coordinates[0].any()
    assert found.panels[1].silhouette is None
    assert found.panels[1].plane_silhouette is None
    assert found.panels[1].knn_accuracy.value == 1.0
    assert "2 nearest" in found.panels[1].neighbours_kept.how
    if method == "tsne":
        assert "perplexity 1.33333" in found.how
        assert found.coordinates[1].any()


def test_what_cannot_be_placed_is_named() -> None:
    features, labels = probe(n=20)
    broken = [features[0], features[1].copy(), features[2]]
    broken[1][3, 2] = np.nan
    with pytest.raises(UsageError, match=r"epoch 2: features of 1 of 20 probe samples are NaN or infinite"):
        made(broken, labels)
    with pytest.raises(UsageError, match=r"epoch 3: expected features \(n, D\) of the same n = 20 probe samples at every epoch, got shape \(19, 64\)"):
        made([*features[:2], features[2][1:]], labels)
    with pytest.raises(UsageError, match="epoch 1: 60 features, the last epoch has 64"):
        made([features[0][:, :60], *features[1:]], labels)
    with pytest.raises(UsageError, match="at least 4 probe samples"):
        made([x[:3] for x in features], labels[:3])
    with pytest.raises(UsageError, match="as many epochs, ascending"):
        project(features, labels, epochs=[1, 3, 2], method="pca", seed=0)
    with pytest.raises(UsageError, match="perplexity and neighbours of at least 1"):
        made(features, labels, neighbours=0)
    with pytest.raises(UsageError, match='expected method "pca" or "tsne"'):
        made(features, labels, "umap")
