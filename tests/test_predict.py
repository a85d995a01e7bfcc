"""A finished run on other images: predict, evaluate and export say what the run itself said."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from drawn_folders import CLASSES, draw_data, train_on
from pellucid.data.scenes import draw
from pellucid.errors import DataError, MissingError, UsageError
from pellucid.evaluate import evaluate
from pellucid.models import read_metadata, read_weights
from pellucid.run import Run
from pellucid.tasks import load_model

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run on class folders; read only, like the data beside it."""
    return train_on(tmp_path_factory.mktemp("predict"), "folder")


@pytest.fixture(scope="module")
def val(trained: Run) -> Path:
    return trained.path.parent / "data" / "val"


# ── predict ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_predict_says_of_the_val_images_what_the_run_saved(trained: Run, val: Path, pellucid: Command) -> None:
    code, out, err = pellucid("predict", trained.path, val)
    assert (code, err) == (0, "")
    lines = list(csv.reader(io.StringIO(out)))
    assert lines[0] == ["filename", "label", "confidence"]
    saved = trained.predictions("val")
    with (trained.path / "predictions" / "val.csv").open(newline="") as file:
        table = {row["file"]: row for row in csv.DictReader(file)}
    assert [line[0] for line in lines[1:]] == [str(val / name) for name in saved.files]
    for (_, label, confidence), name in zip(lines[1:], saved.files, strict=True):
        assert label == table[name]["prediction"]
        assert float(confidence) == pytest.approx(float(table[name]["confidence"]), abs=1e-5)
    assert len({line[2] for line in lines[1:]}) > 3, "a model that says one thing of all would pass any test"


def test_predictions_keep_the_order_of_the_arguments(trained: Run, val: Path) -> None:
    files = [val / "star" / "05.png", val / "circle" / "00.png", val / "square" / "01.png"]
    found = trained.predict(files)
    assert [p.file for p in found] == [str(f) for f in files]
    assert found[::-1] == trained.predict([str(f) for f in files[::-1]])
    mixed = trained.predict([files[2], val / "circle"])
    assert [p.file for p in mixed] == [str(files[2]), *[str(f) for f in sorted((val / "circle").iterdir())]]


def test_folders_are_searched_to_the_bottom_for_images_alone(trained: Run, val: Path, tmp_path: Path) -> None:
    for name in ("b/deep/one.png", "a.PNG", ".hidden.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(val / "circle" / "00.png", tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    assert [p.file for p in trained.predict(tmp_path)] == [str(tmp_path / "a.PNG"), str(tmp_path / "b" / "deep" / "one.png")]


def test_a_pillow_image_is_predicted_like_its_file(trained: Run, val: Path) -> None:
    file = val / "star" / "02.png"
    with Image.open(file) as opened:
        image = opened.convert("RGB")
    (of_image,), (of_file,) = trained.predict(image), trained.predict(file)
    assert of_image.file == "<image>"
    assert (of_image.label, of_image.probabilities) == (of_file.label, of_file.probabilities)
    assert sum(of_image.probabilities) == pytest.approx(1.0)
    assert of_image.confidence == max(of_image.probabilities)
    assert of_image.label == CLASSES[int(np.argmax(of_image.probabilities))]


def test_predict_writes_a_file_or_json(trained: Run, val: Path, tmp_path: Path, pellucid: Command) -> None:
    code, out, _ = pellucid("predict", trained.path, val / "star", "--out", tmp_path / "p.csv")
    assert (code, out) == (0, f"{tmp_path / 'p.csv'}\n")
    found = json.loads(pellucid("predict", trained.path, val / "star", "--json")[1])["predictions"]
    with (tmp_path / "p.csv").open(newline="") as file:
        assert [row["filename"] for row in csv.DictReader(file)] == [p["file"] for p in found]
    assert set(found[0]) == {"file", "label", "confidence", "probabilities"}


def test_an_image_that_cannot_be_read_is_named(trained: Run, val: Path, tmp_path: Path, pellucid: Command) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes((val / "star" / "02.png").read_bytes()[:120])
    code, out, err = pellucid("predict", trained.path, val / "circle", broken)
    assert (code, out) == (2, "")
    assert str(broken) in err
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="there is no image in this folder"):
        trained.predict(tmp_path / "empty")


def test_a_run_without_weights_says_so(copied_run: Path, val: Path, pellucid: Command) -> None:
    (copied_run / "checkpoints" / "final.safetensors").unlink()
    code, _, err = pellucid("predict", copied_run, val)
    assert code == 4
    assert f"the run has no final weights. Is it finished? `pellucid resume {copied_run}`" in err
    with pytest.raises(MissingError):
        load_model(Run(copied_run))


# ── evaluate ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_evaluating_the_val_folder_gives_the_runs_own_numbers(trained: Run, val: Path, pellucid: Command) -> None:
    code, out, _ = pellucid("evaluate", trained.path, "--data", val, "--json", "--quiet")
    assert code == 0
    found = {m["name"]: m for m in json.loads(out)["measurements"]}
    own = {m.name: m for m in trained.record.measurements}
    assert list(found) == list(own)
    for name, m in own.items():
        assert found[name]["value"] == m.value, name
        assert (found[name]["n"], found[name]["split"]) == (m.n, "data")
    code, out, _ = pellucid("evaluate", trained.path, "--data", val, "-q")
    assert code == 0
    assert re.search(rf"^data/accuracy +{own['accuracy']} ", out, re.MULTILINE)


@pytest.mark.parametrize("source", ["prefix", "table"])
def test_every_layout_on_disk_can_be_evaluated(tmp_path: Path, source: str, trained: Run) -> None:
    """The weights do not know how the labels were written down."""
    run = tmp_path / "run"
    shutil.copytree(trained.path, run)
    data = draw_data(tmp_path / "data", source)
    text = (run / "resolved.yaml").read_text().replace("source: folder", f"source: {source}")
    (run / "resolved.yaml").write_text(text)
    found = evaluate(Run(run), str(data / ("val.csv" if source == "table" else "val")))
    # Another order of the files gives another order of sums.
    assert [m.value for m in found] == pytest.approx([m.value for m in trained.record.measurements], abs=1e-6)


def test_a_subset_of_the_classes_is_evaluated_and_an_unknown_one_named(trained: Run, val: Path, tmp_path: Path) -> None:
    shutil.copytree(val / "star", tmp_path / "some" / "star")
    shutil.copytree(val / "circle", tmp_path / "some" / "circle")
    found = {m.name: m for m in evaluate(trained, str(tmp_path / "some"))}
    assert found["accuracy"].n == 6
    assert "recall[square]" not in found
    (tmp_path / "some" / "star").rename(tmp_path / "some" / "stars")
    with pytest.raises(DataError, match=r"label 'stars' is not among the 3 classes of data.classes. Did you mean 'star'\?"):
        evaluate(trained, str(tmp_path / "some"))


def test_a_folder_that_is_not_there_and_a_drawn_source_are_refused(trained: Run, small_run: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is none"):
        evaluate(trained, str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match="--data takes a path; the run's source scenes has none"):
        evaluate(Run(small_run), str(tmp_path))


# ── export ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_safetensors_export_holds_the_same_bits_and_what_is_needed_to_use_them(small_run: Path, tmp_path: Path, pellucid: Command) -> None:
    out_file = tmp_path / "m.safetensors"
    code, out, _ = pellucid("export", small_run, "--format", "safetensors", "--out", out_file)
    assert (code, out.splitlines()[0].split(":")[0]) == (0, str(out_file))
    run = Run(small_run)
    own, written = read_weights(run.final_weights), read_weights(out_file)
    assert own.keys() == written.keys()
    assert all(torch.equal(own[name], written[name]) for name in own)
    facts = read_metadata(out_file)
    assert facts["classes"].splitlines() == run.data.classes
    assert json.loads(facts["image_size"]) == [32, 32]


def test_onnx_export_gives_the_saved_logits_of_the_val_images(trained: Run, val: Path, tmp_path: Path, pellucid: Command) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="needs the extra `export`")
    pytest.importorskip("onnxscript", reason="needs the extra `export`")
    code, out, _ = pellucid("export", trained.path, "--out", tmp_path / "m.onnx", "--json")
    assert code == 0
    assert json.loads(out)["format"] == "onnx"
    session = runtime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    facts = session.get_modelmeta().custom_metadata_map
    mean, std = (np.array(json.loads(facts[key]), np.float32)[:, None, None] for key in ("mean", "std"))
    saved = trained.predictions("val")
    assert json.loads(facts["class_names"]) == list(CLASSES)
    for name, logits in zip(saved.files, saved.logits, strict=True):
        with Image.open(val / name) as image:
            # 40 x 32 pixels: the short side has its size already, so only the centre crop is left
            pixels = np.asarray(image.convert("RGB"), np.float32)[4:36].transpose(2, 0, 1) / 255
        (found,) = session.run(None, {"images": ((pixels - mean) / std)[None]})
        np.testing.assert_allclose(found[0], logits, atol=1e-4, rtol=1e-4)


def test_an_unknown_format_is_refused(small_run: Path, pellucid: Command) -> None:
    assert pellucid("export", small_run, "--format", "pickle") == (2, "", "--format: expected onnx or safetensors, got 'pickle'\n")


def test_an_image_in_memory_is_turned_upright_and_composed_like_a_file(small_run: Path, tmp_path: Path) -> None:
    picture = Image.fromarray(draw(3, split="val", image_size=(32, 32)).image).convert("RGBA")
    picture.putalpha(128)
    picture.save(tmp_path / "half.png")
    [in_memory, of_file] = Run(small_run).predict([picture, tmp_path / "half.png"])
    assert in_memory.probabilities == of_file.probabilities
