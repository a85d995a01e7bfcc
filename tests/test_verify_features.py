"""Verify, of features: an untouched run holds to the bit by two paths; whatever was touched in features, bank or numbers is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist

from drawn_folders import draw_data
from pellucid import representation, verify_features
from pellucid.data.dataset import Dataset
from pellucid.data.sources import load_dataset
from pellucid.models.self_supervised import SelfSupervised
from pellucid.models.weights import read_metadata, read_weights, save_weights
from pellucid.predictions import FeaturePredictions
from pellucid.run import Run
from pellucid.schema.pretraining import ProbeSection
from pellucid.tasks import load_model, runtime_of
from pellucid.train import train
from pellucid.verify import BIT_EQUAL, verify
from pellucid.verify_features import accuracies, anew_feature_checks, raw_pixels, recompute_features, stored_feature_checks

RECIPE = """
task: pretraining
data: {{source: folder, train: {folder}/train, val: {folder}/val, image_size: 32}}
model: {{name: timm/test_resnet}}
method: {{name: simclr, projector_output: 16}}
augment: {{random_resized_crop: [0.3, 1.0], horizontal_flip: 0.5}}
probe: {{bank: 30, neighbours: 5}}
train: {{batch_size: 16, threads: 1, phases: [{{epochs: 1, optimizer: {{name: adamw, lr: 1e-3}}}}]}}
inside: {{features: 12, epochs: [0, last], projections: [pca]}}
"""
PROBE = ProbeSection.model_validate({"neighbours": 5})
NUMBERS = {"knn_accuracy", "linear_accuracy", "alignment", "uniformity", "spread", "rank"}
BASELINES = {f"{name}_accuracy[{other}]" for name in ("knn", "linear") for other in ("untrained", "pixels")}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run on 36 drawn images of 3 classes, with 24 to measure; read only."""
    folder = tmp_path_factory.mktemp("features")
    draw_data(folder / "data", "folder", train_images=36, val_images=24)
    (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder / "data"))
    return train(folder / "recipe.yaml", out=folder / "run", quiet=True, figures=False)


@pytest.fixture(scope="module")
def dataset(made: Run) -> Dataset:
    return load_dataset(made.recipe.data, seed=made.recipe.seed)


@pytest.fixture
def copied(made: Run, tmp_path: Path) -> Run:
    return Run(shutil.copytree(made.path, tmp_path / "copied"))


def wrong(run: Run) -> list[str]:
    """The mismatches of the first path."""
    lines = stored_feature_checks(run)
    assert all(line.startswith("ok " if ok else "MISMATCH ") for _, ok, line in lines), lines
    return [line for _, ok, line in lines if not ok]


def wrong_anew(run: Run, dataset: Dataset) -> tuple[list[str], list[float | None]]:
    """The mismatches of the second path, and how far features differ."""
    runtime = runtime_of(run)
    lines, largest = anew_feature_checks(run, dataset, runtime.place(load_model(run)), runtime, 0.005, None)
    return [line for _, ok, line in lines if not ok], largest


def change_features(run: Run, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    with np.load(run.predictions_file("val")) as file:
        arrays = dict(file)
    change(arrays)
    np.savez(run.predictions_file("val"), **arrays)


def change_record(run: Run, change: Callable[[dict[str, dict[str, Any]]], None]) -> None:
    """change gets {name: measurement}, from which it may take some."""
    record = json.loads((run.path / "run.json").read_text())
    named = {m["name"]: m for m in record["measurements"]}
    change(named)
    record["measurements"] = list(named.values())
    (run.path / "run.json").write_text(json.dumps(record))


def predictions(n: int = 60, m: int = 80, num_classes: int = 4, seed: int = 0) -> FeaturePredictions:
    """Features of classes around their means, projections near each other."""
    random = np.random.default_rng(seed)
    means = random.normal(size=(num_classes, 12))
    labels, bank_labels = random.integers(0, num_classes, n), np.arange(m) % num_classes
    features, bank = (means[of] * 0.7 + random.normal(size=(len(of), 12)) for of in (labels, bank_labels))
    first = random.normal(size=(n, 8)) + 0.5
    views = np.stack([first, first + 0.3 * random.normal(size=(n, 8))])
    return FeaturePredictions(
        [f"{i}.png" for i in range(n)], labels, features.astype(np.float32), views.astype(np.float32), np.arange(m), bank_labels, bank.astype(np.float32)
    )


# ── the whole ──


def test_an_untouched_run_holds_to_the_bit(made: Run) -> None:
    found = verify(made)
    assert found.ok, found.lines()
    assert found.promise == BIT_EQUAL
    assert found.lines()[-1] == "promise: bit-equal (all features and projections are the same bits)"
    twice = {f"number val/{name} {path}" for name in NUMBERS for path in ("from the stored features", "from checkpoint and data")}
    assert twice | {f"number val/{name} from checkpoint and data" for name in BASELINES} <= {check.what for check in found.checks}
    assert not any("[untrained]" in check.what or "[pixels]" in check.what for check in found.checks if "stored" in check.what)


def test_a_run_whose_features_file_is_gone_is_told(copied: Run) -> None:
    copied.predictions_file("val").unlink()
    found = verify(copied)
    assert not found.ok
    assert any(line.startswith("MISMATCH") and "predictions/val.npz" in line for line in found.lines())


def test_memory_that_runs_out_in_watching_bank_and_baselines_shrinks_their_batches_to_the_same_bits(
    made: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """24 images are watched and 30 are the bank; no more than 8 at once find room, whatever is asked of the network."""

    def limited(name: str) -> None:
        real = getattr(SelfSupervised, name)

        def failing(self: SelfSupervised, images: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
            if not self.training and len(images) > 8:
                raise torch.OutOfMemoryError("injected")
            return real(self, images, *rest)

        monkeypatch.setattr(SelfSupervised, name, failing)

    limited("projections")
    limited("forward")
    run = train(made.recipe, out=tmp_path / "short", quiet=True, figures=False)
    assert run.record.evaluation_batch_size == 8
    assert "memory ran out in the evaluation: it takes 8 images at once since step 0" in run.record.notes
    assert {key: m.value for key, m in run.measurements.items()} == pytest.approx({key: m.value for key, m in made.measurements.items()}, abs=1e-4)
    found = verify(run)
    assert (found.ok, found.promise) == (True, BIT_EQUAL), found.lines()


def test_a_run_of_one_val_image_holds_by_both_paths(made: Run, tmp_path: Path) -> None:
    alone = next(Path(str(made.recipe.data.val)).rglob("*.png"))
    (tmp_path / "val" / alone.parent.name).mkdir(parents=True)
    shutil.copy(alone, tmp_path / "val" / alone.parent.name)
    run = train(made.recipe, overrides=[f"data.val={tmp_path / 'val'}", "probe.linear=false", "inside=null"], out=tmp_path / "run", quiet=True, figures=False)
    assert {m.name for m in run.measurements.values()} == {"knn_accuracy", "knn_accuracy[untrained]", "knn_accuracy[pixels]"}
    assert verify(run).ok, verify(run).lines()


# ── what a run leaves besides numbers ──


def change_backbone(run: Run, change: Callable[[dict[str, torch.Tensor], dict[str, str]], None]) -> None:
    tensors, facts = read_weights(run.backbone_weights), read_metadata(run.backbone_weights)
    change(tensors, facts)
    save_weights(tensors, run.backbone_weights, facts)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors, _: tensors["conv1.0.weight"].mul_(1 + 1e-6), "conv1.0.weight is not that of final.safetensors"),
        (lambda tensors, _: tensors.pop("conv1.0.weight"), "conv1.0.weight is missing"),
        (lambda tensors, _: tensors.update({"fc.weight": torch.zeros(2)}), "fc.weight is not of the backbone"),
        (lambda _, facts: facts.update(mean="[0.1, 0.2, 0.3]"), "mean [0.1, 0.2, 0.3] instead of ["),
        (lambda _, facts: facts.update(model="timm/resnet18"), "model timm/resnet18 instead of timm/test_resnet"),
        (lambda _, facts: facts.clear(), "backbone is missing instead of 1"),
    ],
)
def test_a_backbone_file_that_is_not_that_of_the_run_is_told(copied: Run, change: Callable[..., None], said: str) -> None:
    change_backbone(copied, change)
    (line,) = wrong(copied)
    assert line.startswith("MISMATCH checkpoints/backbone.safetensors: ")
    assert said in line


def test_a_backbone_file_that_is_gone_with_its_hash_is_told(copied: Run) -> None:
    record = copied.record
    del record.files["checkpoints/backbone.safetensors"]
    copied.write_record(record)
    copied.backbone_weights.unlink()
    assert "MISMATCH run.json: it holds no hash of checkpoints/backbone.safetensors" in verify(copied).lines()
    assert any(line.startswith("MISMATCH checkpoints/backbone.safetensors: ") for line in wrong(copied))


def test_alarms_that_the_curves_do_not_give_or_give_and_are_not_there_are_told(copied: Run) -> None:
    record = copied.record
    record.alarms = ["collapse: made up"]
    copied.write_record(record)
    assert wrong(copied) == ["MISMATCH run.json: the curves give no such alarm as 'collapse: made up'"]
    shrunk = [{"kind": "watch", "epoch": i, "step": 1000 * i, "spread": 0.5 ** (i + 1), "rank": 1.01, "num_dims": 16, "num_images": 24} for i in range(4)]
    (copied.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in shrunk))
    record.alarms = []
    copied.write_record(record)
    (line,) = wrong(copied)
    assert line.startswith("MISMATCH run.json: an alarm is missing: 'collapse: since epoch 1 ")
    (copied.path / "metrics.jsonl").write_text('{"kind": "watch", "step": 1}\n')
    assert wrong(copied) == ["MISMATCH metrics.jsonl: no alarms can be recomputed from it ('epoch')"]


# ── from the stored features ──


@pytest.mark.parametrize("name", sorted(NUMBERS))
def test_a_number_that_was_touched_is_named(copied: Run, name: str) -> None:
    change_record(copied, lambda named: named[name].update(value=named[name]["value"] * 0.5 + 0.2))
    told = wrong(copied)
    assert any(line.startswith(f"MISMATCH val/{name} from the stored features: reported ") for line in told), told


def test_touched_projections_change_what_projections_say(copied: Run) -> None:
    change_features(copied, lambda arrays: arrays["views"].__setitem__((0, 3), -arrays["views"][0, 3]))
    told = " ".join(wrong(copied))
    assert all(f"MISMATCH val/{name} from the stored features" in told for name in ("alignment", "uniformity", "spread"))
    assert "accuracy" not in told


def test_numbers_that_are_missing_or_of_nothing_are_named(copied: Run) -> None:
    def change(named: dict[str, dict[str, Any]]) -> None:
        del named["rank"], named["linear_accuracy[pixels]"]
        named["spread"]["name"] = "width"

    change_record(copied, change)
    told = wrong(copied)
    assert "MISMATCH run.json: rank, spread of val is missing (from the stored features)" in told
    assert "MISMATCH val/width from the stored features: there is no such number to recompute" in told


def test_a_label_that_is_not_that_of_the_samples_is_named(copied: Run) -> None:
    change_features(copied, lambda arrays: arrays["labels"].__setitem__(4, (arrays["labels"][4] + 1) % 3))
    name = copied.feature_predictions("val").files[4]
    assert f"MISMATCH val features: rows are not those of samples/val.csv (first difference at {name})" in wrong(copied)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: rows[:-1], "29 images, expected 30"),
        (lambda rows: np.sort(np.append(rows[1:], rows[-1])), "its rows are not ascending rows of the 36 training images"),
        (lambda rows: np.append(rows[:-1], 36), "its rows are not ascending rows of the 36 training images"),
        (lambda rows: np.arange(30), "class circle has 12 of its images"),
    ],
)
def test_a_bank_that_is_not_what_the_recipe_says_is_named(copied: Run, change: Callable[[np.ndarray], np.ndarray], said: str) -> None:
    labels = np.array([label for _, label, _ in copied.samples("train")] + [0])

    def other(arrays: dict[str, np.ndarray]) -> None:
        rows = change(arrays["bank_rows"])
        arrays |= {"bank_rows": rows, "bank_labels": labels[rows], "bank": arrays["bank"][: len(rows)]}

    change_features(copied, other)
    assert f"MISMATCH val bank: {said}" in wrong(copied)


def test_a_label_of_the_bank_that_was_touched_is_named(copied: Run) -> None:
    change_features(copied, lambda arrays: arrays["bank_labels"].__setitem__(0, 2))
    assert "MISMATCH val bank: row 0 has label 2, samples/train.csv says 0" in wrong(copied)


def test_intervals_n_and_seed_that_were_touched_are_named(copied: Run) -> None:
    def change(named: dict[str, dict[str, Any]]) -> None:
        named["knn_accuracy"]["interval"][0] -= 0.01
        named["linear_accuracy[pixels]"] |= {"interval": None, "interval_how": ""}
        named["rank"] |= {"n": 7}
        named["spread"] |= {"interval": [0.0, 1.0], "interval_how": "made up"}

    change_record(copied, change)
    (line,) = [line for line in wrong(copied) if "interval" in line]
    for said in ("val/rank: n 7, seed 0 reported; n 24, seed 0 recomputed", "val/knn_accuracy: interval ", "val/linear_accuracy[pixels]: no interval"):
        assert said.replace("seed 0", f"seed {copied.recipe.seed}") in line
    assert "val/spread: an interval where none belongs" in line


# ── numbers ──


@pytest.mark.parametrize("num_classes", [2, 4])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_both_paths_agree_on_any_features(num_classes: int, seed: int) -> None:
    found = predictions(num_classes=num_classes, seed=seed)
    again = recompute_features(found, PROBE)
    votes = representation.knn_votes(found.features, found.bank, found.bank_labels, num_classes, PROBE.neighbours, PROBE.temperature)
    probe = representation.fit_probe(found.bank, found.bank_labels, found.features, num_classes)
    first, second = found.views
    expected = {
        "knn_accuracy": (votes.argmax(axis=1) == found.labels).mean(),
        "linear_accuracy": (probe.logits.argmax(axis=1) == found.labels).mean(),
        "alignment": representation.alignment(first, second),
        "uniformity": representation.uniformity(first),
        "spread": representation.spread(first),
        "rank": representation.effective_rank(first),
    }
    assert again.keys() == expected.keys()
    assert again["knn_accuracy"].slack == 0.0
    assert all(abs(again[name].value - value) <= again[name].slack + 1e-9 for name, value in expected.items())
    assert again["linear_accuracy"].slack < 0.1


def test_constant_features_and_the_penalty_of_all_dimensions_are_as_in_training() -> None:
    found = predictions()
    wide = [np.concatenate([part, np.full((len(part), 12), value, np.float32)], axis=1) for part, value in ((found.features, 7.0), (found.bank, 0.1))]
    found = replace(found, features=wide[0], bank=wide[1])
    probe = representation.fit_probe(found.bank, found.bank_labels, found.features, 4)
    again = accuracies(found, PROBE)["linear_accuracy"]
    assert abs(again.value - (probe.logits.argmax(axis=1) == found.labels).mean()) <= again.slack


def test_images_at_a_tie_may_fall_either_way_and_are_counted() -> None:
    found = predictions(n=10)
    twins = replace(found, bank=np.repeat(found.bank[:1], 80, axis=0))  # every image of the bank is equally near
    assert accuracies(twins, PROBE)["knn_accuracy"].slack == 1.0
    lines = verify_features._compared({"knn_accuracy": verify_features.Again(0.5, 0.2)}, [measured(0.6)], "val", "here", 1e-6)
    assert lines[0][1:] == (True, "ok val/knn_accuracy here: reported 0.6000, recomputed 0.5000 (2 of 10 images at a tie)")
    assert not verify_features._compared({"knn_accuracy": verify_features.Again(0.5, 0.2)}, [measured(0.8)], "val", "here", 1e-6)[0][1]


def measured(value: float) -> Any:
    from pellucid.run import Measurement

    return Measurement("knn_accuracy", value, "fraction", "val", 10, 0, "made up")


def test_few_images_are_undecided_in_a_probe() -> None:
    found = predictions(n=1000)
    near = replace(found, features=np.zeros_like(found.features) + found.bank.mean(axis=0))
    assert accuracies(near, PROBE)["linear_accuracy"].slack <= 0.005 + 1e-9


def test_without_a_bank_or_a_probe_there_are_no_such_accuracies() -> None:
    found = predictions()
    assert accuracies(found, ProbeSection.model_validate({"linear": False})).keys() == {"knn_accuracy"}
    empty = replace(found, bank=found.bank[:0], bank_rows=found.bank_rows[:0], bank_labels=found.bank_labels[:0])
    assert recompute_features(empty, PROBE).keys() == {"alignment", "uniformity", "spread", "rank"}
    alone = replace(found, bank_labels=np.full(80, 1))
    assert accuracies(alone, PROBE)["linear_accuracy"].value == (found.labels == 1).mean()
    one = replace(empty, files=["0.png"], labels=found.labels[:1], features=found.features[:1], views=found.views[:, :1])
    assert recompute_features(one, PROBE) == {}, "as training measures it"


def test_uniformity_in_rows_is_that_of_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    points = representation.unit_rows(np.random.default_rng(0).normal(size=(50, 4)))
    monkeypatch.setattr(verify_features, "ROWS", 7)
    assert verify_features._uniformity(points) == pytest.approx(float(np.log(np.exp(-2 * pdist(points, "sqeuclidean")).mean())), abs=1e-12)


# ── from checkpoint and data ──


@pytest.mark.parametrize("size", [(32, 32), (40, 36), (17, 23)])
def test_raw_pixels_are_those_of_torch(size: tuple[int, int]) -> None:
    images = torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(0))
    pooled = torch.nn.functional.adaptive_avg_pool2d(images.double(), 16).flatten(1)
    assert raw_pixels(images) == pytest.approx(pooled.numpy(), abs=1e-6)


def test_a_baseline_that_was_touched_or_is_missing_is_named_from_the_data(copied: Run, dataset: Dataset) -> None:
    def change(named: dict[str, dict[str, Any]]) -> None:
        named["knn_accuracy[untrained]"]["value"] = 0.0
        del named["linear_accuracy[pixels]"]

    change_record(copied, change)
    told, largest = wrong_anew(copied, dataset)
    assert any(line.startswith("MISMATCH val/knn_accuracy[untrained] from checkpoint and data: reported 0.0000, recomputed ") for line in told), told
    assert "MISMATCH run.json: linear_accuracy[pixels] of val is missing (from checkpoint and data)" in told
    assert largest == [0.0]


def test_another_network_gives_other_numbers(made: Run, dataset: Dataset) -> None:
    module, runtime = load_model(made), runtime_of(made)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(-1.5)
    lines, largest = anew_feature_checks(made, dataset, runtime.place(module), runtime, 0.005, None)
    told = " ".join(line for _, ok, line in lines if not ok)
    assert "MISMATCH val/rank from checkpoint and data" in told
    assert "[pixels]" not in told
    assert "[untrained]" not in told
    assert largest[0] is not None
    assert largest[0] > 0.0


def test_without_the_training_images_only_projections_are_recomputed(made: Run, dataset: Dataset) -> None:
    told, largest = wrong_anew(made, replace(dataset, splits={"val": dataset.splits["val"]}))
    assert told == []
    assert largest == [None], "there is no bank to compare"
    assert wrong_anew(made, replace(dataset, splits={"train": dataset.splits["train"]})) == ([], [])
