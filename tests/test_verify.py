"""Verify: what was not touched holds to the bit; whatever was touched is found, named and told by exit code 3."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import top_k_accuracy_score
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error, multiclass_f1_score, multiclass_recall

from drawn_folders import train_on
from pellucid.errors import RunError
from pellucid.files import file_hash
from pellucid.models import read_metadata, read_weights, save_weights
from pellucid.predictions import Predictions
from pellucid.run import Run
from pellucid.tasks.classification import measure
from pellucid.verify import compare_retrained, recompute, verify

Command = Callable[..., tuple[int, str, str]]


def edit_json(path: Path, change: Callable[[dict], None]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def edit_predictions(run: Path, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    path = run / "predictions" / "val.npz"
    with np.load(path) as arrays:
        changed = {name: arrays[name].copy() for name in arrays}
    change(changed)
    np.savez(path, **changed)


def accept_hash(run: Path, *names: str) -> None:
    """Write the present hashes into run.json, as somebody would who covers a change."""
    edit_json(run / "run.json", lambda record: record["files"].update({name: file_hash(run / name) for name in names}))


def mismatches(outcome: tuple[int, str, str]) -> list[str]:
    """The lines of what verify found wrong; the code is 3 and stderr says the same."""
    code, out, err = outcome
    assert code == 3, (code, out, err)
    lines = [line for line in out.splitlines() if line.startswith("MISMATCH")]
    assert lines
    assert all(line in err for line in lines)
    assert out.splitlines()[-1].startswith("mismatch: ")
    return lines


# ── what was not touched ──────────────────────────────────────────────────────────────────────────────────────


def test_an_untouched_run_verifies_to_the_bit(copied_run: Path, pellucid: Command) -> None:
    code, out, err = pellucid("verify", copied_run, "--quiet")
    assert (code, err) == (0, "")
    assert "promise: bit-equal (all logits are the same bits)" in out
    assert "ok val/accuracy from the predictions" in out
    assert "ok val/accuracy from checkpoint and data" in out
    assert out.splitlines()[-1].startswith(f"verified: {copied_run} (")
    saved = json.loads((copied_run / "verify.json").read_text())
    assert (saved["result"], saved["class"]) == ("verified", "bit-equal")


def test_json_of_verify_is_one_object_with_every_check(copied_run: Path, pellucid: Command) -> None:
    code, out, _ = pellucid("verify", copied_run, "--json", "--tolerance", "0.01")
    found = json.loads(out)
    assert code == 0
    assert set(found) == {"run", "checks", "promise", "tolerance", "when", "result"}
    assert (found["result"], found["promise"], found["tolerance"]) == ("verified", "bit-equal", 0.01)
    assert all(set(check) == {"what", "ok", "line"} and check["ok"] for check in found["checks"])
    twice = [check["what"] for check in found["checks"] if check["what"].startswith("number val/accuracy")]
    assert twice == ["number val/accuracy from the predictions", "number val/accuracy from checkpoint and data"]


def test_every_measurement_is_recomputed_on_both_paths(small_run: Path) -> None:
    run = Run(small_run)
    looked = [check.what for check in verify(run).checks]
    for key in run.measurements:
        assert f"number {key} from the predictions" in looked
        assert f"number {key} from checkpoint and data" in looked


# ── files ─────────────────────────────────────────────────────────────────────────────────────────────────────


def change_weight(run: Path) -> None:
    path = run / "checkpoints" / "final.safetensors"
    weights = {name: tensor.clone() for name, tensor in read_weights(path).items()}
    weights["head.bias"][0] += 1.0
    save_weights(weights, path, read_metadata(path))


def change_logit(run: Path) -> None:
    edit_predictions(run, lambda arrays: arrays["logits"].__setitem__((3, 2), arrays["logits"][3, 2] + 0.5))


def change_row(run: Path) -> None:
    path = run / "predictions" / "val.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], lines[2].replace("square", "star"), *lines[3:]]) + "\n")
    assert path.read_text().splitlines() != lines


@pytest.mark.parametrize(
    ("change", "name"),
    [(change_weight, "checkpoints/final.safetensors"), (change_logit, "predictions/val.npz"), (change_row, "predictions/val.csv")],
)
def test_a_changed_file_is_named(copied_run: Path, pellucid: Command, change: Callable[[Path], None], name: str) -> None:
    change(copied_run)
    assert f"MISMATCH {name}: the file changed since the run (its hash differs)" in mismatches(pellucid("verify", copied_run, "-q"))
    assert json.loads((copied_run / "verify.json").read_text())["result"] == "mismatch"


@pytest.mark.parametrize("name", ["resolved.yaml", "data.json", "samples/train.csv"])
def test_a_changed_setting_or_list_is_named(copied_run: Path, pellucid: Command, name: str) -> None:
    with (copied_run / name).open("a") as file:
        file.write("\n")
    assert f"MISMATCH {name}: the file changed since the run (its hash differs)" in mismatches(pellucid("verify", copied_run))


def test_a_missing_file_is_named(copied_run: Path, pellucid: Command) -> None:
    (copied_run / "predictions" / "val.csv").unlink()
    assert mismatches(pellucid("verify", copied_run)) == ["MISMATCH predictions/val.csv: the file is missing"]


def test_truncated_weights_are_named_and_the_rest_is_still_checked(copied_run: Path, pellucid: Command) -> None:
    path = copied_run / "checkpoints" / "final.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    outcome = pellucid("verify", copied_run)
    assert any(line.startswith("MISMATCH final.safetensors: cannot be loaded: ") for line in mismatches(outcome))
    assert "ok val/accuracy from the predictions" in outcome[1]
    assert "promise" not in outcome[1]


def test_weights_of_another_shape_are_named(copied_run: Path, pellucid: Command) -> None:
    path = copied_run / "checkpoints" / "final.safetensors"
    weights = dict(read_weights(path))
    weights["head.bias"] = torch.zeros(3)
    save_weights(weights, path)
    assert any(line.startswith("MISMATCH final.safetensors: does not fit the model") for line in mismatches(pellucid("verify", copied_run)))


def test_truncated_predictions_are_named(copied_run: Path, pellucid: Command) -> None:
    path = copied_run / "predictions" / "val.npz"
    path.write_bytes(path.read_bytes()[:200])
    assert any("val.npz: cannot be read as predictions" in line for line in mismatches(pellucid("verify", copied_run)))


# ── numbers: what a covered change still betrays ──────────────────────────────────────────────────────────────


def test_an_edited_measurement_is_named_with_both_values(copied_run: Path, pellucid: Command) -> None:
    before = Run(copied_run).measurements["val/accuracy"].value
    edit_json(copied_run / "run.json", lambda record: record["measurements"][0].update(value=before + 0.01))
    lines = mismatches(pellucid("verify", copied_run))
    reported = f"reported {before + 0.01:.4f}, recomputed {before:.4f}"
    curve = f"MISMATCH metrics.jsonl: val accuracy is {before} at epoch 2, measured {before + 0.01:.6g}"
    assert lines == [f"MISMATCH val/accuracy from the predictions: {reported}", curve, f"MISMATCH val/accuracy from checkpoint and data: {reported}"]


def test_a_number_beyond_rounding_but_within_the_tolerance_is_caught_from_the_predictions(copied_run: Path, pellucid: Command) -> None:
    before = Run(copied_run).measurements["val/loss"].value
    index = list(Run(copied_run).measurements).index("val/loss")
    edit_json(copied_run / "run.json", lambda record: record["measurements"][index].update(value=before + 0.001))
    assert [line.split(":")[0] for line in mismatches(pellucid("verify", copied_run))] == ["MISMATCH val/loss from the predictions"]
    lines = mismatches(pellucid("verify", copied_run, "--tolerance", "0.0005"))
    assert [line.split(":")[0] for line in lines] == [
        "MISMATCH val/loss from the predictions",
        "MISMATCH metrics.jsonl",
        "MISMATCH val/loss from checkpoint and data",
    ]


def test_an_invented_number_is_named(copied_run: Path, pellucid: Command) -> None:
    edit_json(copied_run / "run.json", lambda record: record["measurements"][0].update(name="brilliance"))
    assert "MISMATCH val/brilliance from the predictions: there is no such number to recompute" in mismatches(pellucid("verify", copied_run))


def test_a_number_of_no_split_or_twice_is_named(copied_run: Path, pellucid: Command) -> None:
    def add(record: dict) -> None:
        first, second, *_ = record["measurements"]
        record["measurements"] += [{**first, "split": "test"}, {**first, "split": "train"}, second]

    edit_json(copied_run / "run.json", add)
    name = Run(copied_run).record.measurements[1].key
    assert mismatches(pellucid("verify", copied_run)) == [
        "MISMATCH test/accuracy: a number of test, the run measures val",
        "MISMATCH train/accuracy: a number of train, the run measures val",
        f"MISMATCH {name}: it stands in run.json 2 times",
    ]


def test_a_changed_weight_with_a_covered_hash_changes_the_logits(copied_run: Path, pellucid: Command) -> None:
    change_weight(copied_run)
    accept_hash(copied_run, "checkpoints/final.safetensors")
    assert any(line.startswith("MISMATCH val/loss from checkpoint and data") for line in mismatches(pellucid("verify", copied_run)))


def test_a_changed_logit_with_a_covered_hash_does_not_fit_the_numbers(copied_run: Path, pellucid: Command) -> None:
    change_logit(copied_run)
    accept_hash(copied_run, "predictions/val.npz")
    assert any(line.startswith("MISMATCH val/loss from the predictions") for line in mismatches(pellucid("verify", copied_run)))


def test_a_row_taken_out_of_the_predictions_is_named(copied_run: Path, pellucid: Command) -> None:
    edit_predictions(copied_run, lambda arrays: arrays.update({name: rows[1:] for name, rows in arrays.items()}))
    accept_hash(copied_run, "predictions/val.npz")
    lines = mismatches(pellucid("verify", copied_run))
    assert "MISMATCH val predictions: rows are not those of samples/val.csv (first difference at scenes-val-000001.png)" in lines


# ── pictures and labels ───────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def runs_on_disk(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    return {source: train_on(tmp_path_factory.mktemp(source), source) for source in ("folder", "prefix", "table")}


@pytest.fixture
def on_disk(runs_on_disk: dict[str, Run], tmp_path: Path) -> Iterator[Callable[[str], tuple[Path, Path]]]:
    """source -> (run, data); whatever a test does to them is undone."""
    touched = {}

    def lend(source: str) -> tuple[Path, Path]:
        folder = runs_on_disk[source].path.parent
        touched[folder] = Path(shutil.copytree(folder, tmp_path / source))
        return folder / "run", folder / "data"

    yield lend
    for folder, backup in touched.items():
        shutil.rmtree(folder)
        shutil.copytree(backup, folder)


@pytest.mark.parametrize("source", ["folder", "prefix", "table"])
def test_files_on_disk_verify_to_the_bit(on_disk: Callable, pellucid: Command, source: str) -> None:
    run, _ = on_disk(source)
    code, out, _ = pellucid("verify", run)
    assert code == 0
    assert "promise: bit-equal" in out
    assert "ok val data: 9 images and labels unchanged" in out


def test_a_label_changed_in_the_table_is_named(on_disk: Callable, pellucid: Command) -> None:
    run, data = on_disk("table")
    text = (data / "val.csv").read_text()
    (data / "val.csv").write_text(text.replace("04.png,square", "04.png,star"))
    assert (data / "val.csv").read_text() != text
    assert mismatches(pellucid("verify", run)) == ["MISMATCH val data: the label of 04.png changed from square to star"]


def test_a_picture_in_another_class_folder_is_named(on_disk: Callable, pellucid: Command) -> None:
    run, data = on_disk("folder")
    (data / "val" / "circle" / "00.png").rename(data / "val" / "star" / "00.png")
    assert mismatches(pellucid("verify", run)) == ["MISMATCH val data: circle/00.png is missing; star/00.png is new"]


@pytest.mark.parametrize(("source", "split", "name"), [("folder", "train", "square/01.jpg"), ("prefix", "val", "circle_03.png"), ("table", "val", "05.png")])
def test_changed_pixels_are_named(on_disk: Callable, pellucid: Command, source: str, split: str, name: str) -> None:
    run, data = on_disk(source)
    with Image.open(data / split / name) as opened:
        image = opened.convert("RGB")
    image.putpixel((5, 5), (1, 2, 3))
    image.save(data / split / name)
    assert mismatches(pellucid("verify", run)) == [f"MISMATCH {split} data: the content of {name} changed"]


def test_a_damaged_picture_is_named(on_disk: Callable, pellucid: Command) -> None:
    run, data = on_disk("prefix")
    file = data / "val" / "circle_03.png"
    file.write_bytes(file.read_bytes()[:150])
    outcome = pellucid("verify", run)
    assert mismatches(outcome) == ["MISMATCH data: 1 of 21 images cannot be used:"]
    assert "val: circle_03.png: truncated" in outcome[1]


def test_a_deleted_picture_is_named(on_disk: Callable, pellucid: Command) -> None:
    run, data = on_disk("prefix")
    (data / "train" / "star_05.jpg").unlink()
    assert mismatches(pellucid("verify", run)) == ["MISMATCH train data: star_05.jpg is missing"]


def test_a_deleted_picture_of_a_table_is_named(on_disk: Callable, pellucid: Command) -> None:
    run, data = on_disk("table")
    (data / "val" / "02.png").unlink()
    outcome = pellucid("verify", run)
    assert len(mismatches(outcome)) == 1
    assert "02.png: no such file" in outcome[1]


def test_an_added_picture_is_named(on_disk: Callable, pellucid: Command) -> None:
    run, data = on_disk("folder")
    shutil.copy(data / "train" / "star" / "02.jpg", data / "val" / "star" / "99.jpg")
    assert mismatches(pellucid("verify", run)) == ["MISMATCH val data: star/99.jpg is new"]


def test_data_that_is_gone_is_named_and_the_predictions_are_still_checked(on_disk: Callable, pellucid: Command) -> None:
    run, data = on_disk("folder")
    shutil.rmtree(data / "val")
    outcome = pellucid("verify", run)
    assert [line.split(":")[0] for line in mismatches(outcome)] == ["MISMATCH data"]
    assert str(data / "val") in outcome[1]
    assert "ok val/accuracy from the predictions" in outcome[1]


# ── again from the recipe ─────────────────────────────────────────────────────────────────────────────────────


def test_retraining_gives_the_same_bits(copied_run: Path, pellucid: Command) -> None:
    code, out, _ = pellucid("verify", copied_run, "--retrain", "-q")
    assert code == 0
    assert "retrained weights: the same bits" in out
    assert "ok val/accuracy retrained" in out


def test_retraining_finds_a_number_that_the_recipe_does_not_give(copied_run: Path, small_run: Path) -> None:
    edit_json(copied_run / "run.json", lambda record: record["measurements"][0].update(value=0.999))
    found = compare_retrained(Run(copied_run), Run(small_run))
    assert [check.what for check in found.checks if not check.ok] == ["number val/accuracy"]
    assert (found.promise, found.result) == ("bit-equal", "mismatch")


def test_an_unfinished_run_is_refused(copied_run: Path, pellucid: Command) -> None:
    edit_json(copied_run / "run.json", lambda record: record.update(status="interrupted"))
    code, out, err = pellucid("verify", copied_run)
    assert (code, out) == (2, "")
    assert f"the run is interrupted; only a finished run has numbers to verify. `pellucid resume {copied_run}` finishes it." in err
    with pytest.raises(RunError):
        verify(str(copied_run))


# ── recompute against definitions and another library ─────────────────────────────────────────────────────────


@pytest.fixture(params=[(3, 40), (7, 61), (12, 200)], ids=lambda size: f"{size[0]} classes")
def predictions(request: pytest.FixtureRequest) -> Predictions:
    """Random logits; the last class occurs in neither labels nor predictions, the one before not in the labels."""
    C, n = request.param
    rng = np.random.default_rng(C)
    logits = rng.normal(size=(n, C)).astype(np.float32)
    logits[:, -1] = -9.0
    labels = rng.integers(0, C - 2, n) if C > 3 else rng.integers(0, C - 1, n)
    logits[np.arange(n), labels] += 1.0
    return Predictions([f"{i}.png" for i in range(n)], labels, logits)


def test_recompute_follows_the_definitions(predictions: Predictions) -> None:
    labels, C = predictions.labels.tolist(), predictions.logits.shape[1]
    n = len(labels)
    rows = [[float(x) for x in row] for row in predictions.logits]
    best = [max(range(C), key=lambda c, row=row: row[c]) for row in rows]
    logs = [[x - math.log(math.fsum(math.exp(y) for y in row)) for x in row] for row in rows]
    f1 = []
    recalls = []
    for c in range(C):
        hits = sum(b == c == y for b, y in zip(best, labels, strict=True))
        claimed, there = best.count(c), labels.count(c)
        recalls.append(hits / there if there else 0.0)
        if claimed + there:
            f1.append(2 * hits / (claimed + there))
    gap = 0.0
    for b in range(15):
        inside = [i for i in range(n) if b / 15 < math.exp(logs[i][best[i]]) <= (b + 1) / 15]
        if inside:
            accuracy = sum(best[i] == labels[i] for i in inside) / len(inside)
            confidence = math.fsum(math.exp(logs[i][best[i]]) for i in inside) / len(inside)
            gap += len(inside) / n * abs(accuracy - confidence)
    found = recompute(predictions)
    assert found["accuracy"] == pytest.approx(sum(b == y for b, y in zip(best, labels, strict=True)) / n, abs=1e-12)
    assert found["loss"] == pytest.approx(-math.fsum(logs[i][labels[i]] for i in range(n)) / n, abs=1e-12)
    assert found["macro_f1"] == pytest.approx(sum(f1) / len(f1), abs=1e-12)
    assert found["calibration_error"] == pytest.approx(gap, abs=1e-12)
    np.testing.assert_allclose(found["recall"], recalls, atol=1e-12)
    if C > 5:
        five = [sorted(range(C), key=lambda c, row=row: -row[c])[:5] for row in rows]
        assert found["top5_accuracy"] == pytest.approx(sum(y in chosen for y, chosen in zip(labels, five, strict=True)) / n, abs=1e-12)
        assert found["top5_accuracy"] == pytest.approx(top_k_accuracy_score(labels, predictions.logits, k=5, labels=range(C)), abs=1e-12)
    else:
        assert "top5_accuracy" not in found


def test_recompute_agrees_with_torchmetrics(predictions: Predictions) -> None:
    logits, labels = torch.from_numpy(predictions.logits).double(), torch.from_numpy(predictions.labels)
    C = logits.shape[1]
    found = recompute(predictions)
    assert found["accuracy"] == pytest.approx(float(multiclass_accuracy(logits, labels, C, average="micro")), abs=1e-6)
    assert found["macro_f1"] == pytest.approx(float(multiclass_f1_score(logits, labels, C, average="macro")), abs=1e-6)
    assert found["calibration_error"] == pytest.approx(float(multiclass_calibration_error(logits.softmax(1), labels, C, n_bins=15)), abs=1e-6)
    np.testing.assert_allclose(found["recall"], multiclass_recall(logits, labels, C, average="none").numpy(), atol=1e-6)


@pytest.mark.parametrize("step", [0.0, 0.25])
def test_measured_and_recomputed_numbers_agree_also_on_equal_logits(predictions: Predictions, step: float) -> None:
    """In bf16 many logits are equal; both paths must then choose the same classes."""
    logits = predictions.logits if step == 0.0 else np.round(predictions.logits / step).astype(np.float32) * step
    rounded = Predictions(predictions.files, predictions.labels, logits)
    names = [f"class {c}" for c in range(logits.shape[1])]
    found = recompute(rounded)
    for m in measure(rounded, classes=names, split="val", seed=1, note="-"):
        name, _, argument = m.name.partition("[")
        value = found[name] if not argument else found[name][names.index(argument[:-1])]
        assert m.value == pytest.approx(value, abs=1e-6), m.name


def test_an_edited_interval_or_seed_is_a_mismatch(copied_run: Path) -> None:
    record = json.loads((copied_run / "run.json").read_text())
    record["measurements"][0]["interval"][0] -= 0.05
    record["measurements"][1]["seed"] = 7
    (copied_run / "run.json").write_text(json.dumps(record))
    found = verify(Run(copied_run))
    assert not found.ok
    [line] = [c.line for c in found.checks if not c.ok]
    assert line.startswith("MISMATCH val/accuracy: interval ")
    assert "seed 7 reported" in line


def test_a_model_that_answers_exactly_one_in_three_verifies() -> None:
    """1/3 is an edge of 15 bins: half of these logits are zero, half differ from zero by rounding."""
    logits = np.zeros((40, 3), np.float32)
    logits[20:, 0] = 1e-7
    predictions = Predictions([str(i) for i in range(40)], np.arange(40) % 3, logits)
    reported = {m.name: m.value for m in measure(predictions, classes=("a", "b", "c"), split="val", seed=1, note="")}
    found = recompute(predictions)
    assert found["calibration_error"] == pytest.approx(reported["calibration_error"], abs=1e-9)
    confidence = np.exp(logits.astype(np.float64)) / np.exp(logits.astype(np.float64)).sum(axis=1, keepdims=True)
    below, above = slice(0, 20), slice(20, 40)
    right = logits.argmax(axis=1) == predictions.labels
    expected = sum(abs(right[half].sum() - confidence[half].max(axis=1).sum()) for half in (below, above)) / 40
    assert reported["calibration_error"] == pytest.approx(expected, abs=1e-9)
