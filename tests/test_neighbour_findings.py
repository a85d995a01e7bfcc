"""Training images to compare with: the nearest are those of a plain loop, and files that were changed are named with their key."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pellucid.errors import RecipeError, RunError
from pellucid.files import file_hash
from pellucid.neighbour_findings import KeptNeighbours, Near, Neighbour, NeighbourFindings, has_neighbours, load_neighbours, nearest_kept
from pellucid.predictions import Predictions
from pellucid.recipe import load
from pellucid.run import Run
from pellucid.train import train

INSIDE = "inside: {samples: 0, features: 0, epochs: [last], neighbours: 20}\n"


@pytest.fixture(scope="module")
def banked(tmp_path_factory: pytest.TempPathFactory, small_recipe: str) -> Run:
    """A run of drawn scenes that keeps training images; read only."""
    folder = tmp_path_factory.mktemp("banked")
    (folder / "r.yaml").write_text(small_recipe + INSIDE.replace("features: 0", "features: 6"))
    return train(folder / "r.yaml", out=folder / "run", quiet=True, figures=False)


def by_loop(one: np.ndarray, bank: np.ndarray, most: int) -> list[tuple[int, float]]:
    """The most similar images from the definition of the cosine, in float64."""
    found = []
    for i, other in enumerate(bank.astype(np.float64)):
        a = one.astype(np.float64)
        cosine = math.fsum(a * other) / math.sqrt(math.fsum(a * a) * math.fsum(other * other))
        found.append((i, cosine))
    return sorted(found, key=lambda pair: (-round(pair[1], 12), pair[0]))[:most]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_the_nearest_are_those_of_a_plain_loop(dtype: type) -> None:
    rng = np.random.default_rng(1)
    bank, own = rng.normal(size=(40, 7)).astype(dtype), rng.normal(size=(5, 7)).astype(dtype)
    for one, near in zip(own, nearest_kept(own, bank, 6), strict=True):
        wanted = by_loop(one, bank, 6)
        assert [neighbour.index for neighbour in near] == [i for i, _ in wanted]
        np.testing.assert_allclose([neighbour.cosine for neighbour in near], [cosine for _, cosine in wanted], atol=1e-11)


def test_of_equally_similar_images_the_earlier_counts() -> None:
    bank = np.array([[0, 1], [2, 0], [1, 0], [3, 0]], np.float32)
    (near,) = nearest_kept(np.array([[5, 0]], np.float32), bank, 3)
    assert [neighbour.index for neighbour in near] == [1, 2, 3]


def test_a_run_keeps_the_neighbours_of_its_most_confident_mistakes(banked: Run) -> None:
    kept = load_neighbours(banked.inside)
    samples = banked.samples("train")
    assert (kept.findings.n, kept.findings.of) == (20, len(samples))
    assert kept.findings.files == [samples[row][0] for row in kept.rows]
    assert kept.labels.tolist() == [samples[row][1] for row in kept.rows]
    for split in banked.prediction_splits:
        p: Predictions = banked.predictions(split)
        probabilities = p.probabilities()
        wrong = [row for row in range(len(p.labels)) if probabilities[row].argmax() != p.labels[row]]
        wanted = sorted(wrong, key=lambda row: (-probabilities[row].max(), row))[:96]
        assert [near.row for near in kept.findings.mistakes[split]] == wanted
        assert wanted == sorted(wanted, key=lambda row: -probabilities[row].max())
        assert {int(path.stem) for path in (banked.thumbnails / split).glob("*.webp")} == set(wanted)
        for near, own in zip(kept.findings.mistakes[split], kept.mistakes[split], strict=True):
            assert [neighbour.index for neighbour in near.near] == [i for i, _ in by_loop(own, kept.features, 6)]


def test_the_files_have_hashes_and_the_same_bytes_in_a_second_training(banked: Run, small_recipe: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(small_recipe + INSIDE.replace("features: 0", "features: 6"))
    again = train(tmp_path / "r.yaml", out=tmp_path / "run", quiet=True, figures=False)
    names = ["snapshots/probe.webp", *(f"inside/neighbours.{ending}" for ending in ("json", "npz", "webp"))]
    assert {name: banked.record.files[name] for name in names} == {name: file_hash(again.path / name) for name in names}


def test_a_run_may_keep_none(small_recipe: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(small_recipe + "inside: {samples: 0, features: 6, epochs: [last], neighbours: 0, projections: []}\n")
    run = train(tmp_path / "r.yaml", out=tmp_path / "run", quiet=True, figures=False)
    assert not has_neighbours(run.inside)
    with pytest.raises(RunError, match=r"neighbours\.json: expected training images to compare with; there is no such file\. `inside: {neighbours: 2000}`"):
        load_neighbours(run.inside)


def test_segmentation_has_no_features_to_compare(tmp_path: Path) -> None:
    text = "task: segmentation\ndata: {source: scenes, train: 30, val: 10, image_size: 32}\nmodel: {name: smp/Unet, encoder: tu-test_resnet}\n"
    text += "train: {phases: [{epochs: 1, optimizer: {name: adamw, lr: 1.0e-3}}]}\n"
    (tmp_path / "r.yaml").write_text(text + "inside: {neighbours: 10}\n")
    with pytest.raises(RecipeError, match="neighbours belongs to classification: segmentation has no features of whole images; leave it out"):
        load(tmp_path / "r.yaml")
    (tmp_path / "r.yaml").write_text(text + "inside: {samples: 4}\n")
    assert load(tmp_path / "r.yaml").inside.neighbours == 0  # type: ignore[union-attr]


# ── files that were changed ───────────────────────────────────────────────────────────────────────────────────


def kept_of(n: int = 4) -> KeptNeighbours:
    rng = np.random.default_rng(2)
    features = rng.normal(size=(n, 3)).astype(np.float16)
    own = rng.normal(size=(1, 3)).astype(np.float16)
    findings = NeighbourFindings("0", "train", n, 10, "cosine", [f"{i}.png" for i in range(n)], {"val": [Near(3, nearest_kept(own, features)[0])]})
    return KeptNeighbours(findings, features, np.arange(n), np.zeros(n, np.int64), {"val": own})


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    kept = kept_of()
    kept.save(tmp_path)
    again = load_neighbours(tmp_path)
    assert again.findings == kept.findings
    assert np.array_equal(again.features, kept.features)
    assert np.array_equal(again.mistakes["val"], kept.mistakes["val"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda k: replace(k, features=k.features[:2]), r"neighbours\.npz: features: expected finite numbers \(4, 3\); got float16 \(2, 3\)"),
        (lambda k: replace(k, features=k.features * np.float16(np.nan)), r"features: expected finite numbers"),
        (lambda k: replace(k, rows=k.rows[::-1]), r"rows: expected ascending rows of 10 images"),
        (lambda k: replace(k, rows=k.rows.astype(np.int32)), r"rows: expected int64 numbers \(4,\); got int32"),
        (lambda k: replace(k, mistakes={}), r"mistakes/val: the array is missing"),
        (lambda k: replace(k, mistakes={**k.mistakes, "test": k.features}), r"mistakes/test: belongs to nothing in neighbours\.json"),
        (lambda k: replace(k, findings=replace(k.findings, files=["a"])), r"files: expected the names of 4 of 10 images, got 1"),
        (
            lambda k: replace(k, findings=replace(k.findings, mistakes={"val": [Near(3, [Neighbour(4, 0.5)])]})),
            r"mistakes\.val: row 3: expected places below 4 and cosines",
        ),
    ],
)
def test_a_changed_file_is_an_error_with_its_key(change: Callable[[KeptNeighbours], KeptNeighbours], said: str, tmp_path: Path) -> None:
    change(kept_of()).save(tmp_path)
    with pytest.raises(RunError, match=said):
        load_neighbours(tmp_path)
