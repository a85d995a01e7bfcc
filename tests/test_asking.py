"""What the explorer says of one picture, by each task: the run's own answer, whichever way the file holds its pixels, in words that are true of one picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

import pellucid.look
from captioning_runs import tiny_run
from pellucid.data.scenes import draw
from pellucid.explore.asking import Asker
from pellucid.look import look_into
from pellucid.look_words import look_into_words
from pellucid.run import Run
from pellucid.train import train
from sent import unpacked

SMALL = """
data: {source: scenes, train: 40, val: 12, image_size: 32}
train: {batch_size: 16, threads: 1, phases: [{epochs: 1, optimizer: {name: adamw, lr: 1.0e-3}}]}
"""
TASKS = {
    "classification": "task: classification\nmodel: {name: timm/test_vit, options: {patch_size: 8, embed_dim: 32, num_heads: 2, depth: 2}}\ninside: {neighbours: 20}\n",
    "segmentation": "task: segmentation\nmodel: {name: smp/Unet, encoder: tu-test_resnet, options: {encoder_depth: 3, decoder_channels: [16, 8, 8]}}\n",
    "pretraining": "task: pretraining\nmodel: {name: timm/test_resnet}\nmethod: {name: simclr, projector_output: 16}\nprobe: {linear: false}\naugment: {random_resized_crop: [0.2, 1.0]}\ninside: {neighbours: 20}\n",
}
TURNED_BACK = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT, 3: PIL.Image.Transpose.ROTATE_180, 4: PIL.Image.Transpose.FLIP_TOP_BOTTOM, 5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_90, 7: PIL.Image.Transpose.TRANSVERSE, 8: PIL.Image.Transpose.ROTATE_270,
}  # fmt: skip


@pytest.fixture(scope="module", params=[*TASKS, "captioning"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of seconds of each task; read only."""
    if request.param == "captioning":
        return tiny_run(tmp_path_factory)
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "r.yaml").write_text(TASKS[request.param] + SMALL)
    return train(folder / "r.yaml", out=folder / "run", quiet=True, figures=False)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """{orientation: file} of one oblong photograph: as it is (1), and held in each other way with the orientation that says so."""
    folder, upright = tmp_path_factory.mktemp("photos"), PIL.Image.fromarray(draw(7, split="val", image_size=(36, 52)).image)
    found = {}
    for orientation in range(1, 9):
        exif = PIL.Image.Exif()
        exif[0x0112] = orientation
        found[orientation] = folder / f"{orientation}.png"
        held = upright.transpose(TURNED_BACK[orientation]) if orientation > 1 else upright
        held.save(found[orientation], **({"exif": exif} if orientation > 1 else {}))
    return found


def asked(run: Run, file: Path, folder: Path) -> dict[str, Any]:
    folder.mkdir()
    return Asker().look(run, file.read_bytes(), file.suffix, folder)


def texts(value: Any) -> list[str]:
    """Every text in a value of JSON but those of pictures and arrays."""
    if isinstance(value, dict):
        return [text for key, item in value.items() if key not in ("photo", "base64") for text in texts(item)]
    return [text for item in value for text in texts(item)] if isinstance(value, list | tuple) else [value] if isinstance(value, str) else []


def test_the_answer_is_the_same_whichever_way_the_file_holds_the_picture(run: Run, photos: dict[int, Path], tmp_path: Path) -> None:
    answers = {orientation: asked(run, file, tmp_path / str(orientation)) for orientation, file in photos.items()}
    for orientation, answer in answers.items():
        assert json.dumps(answer) == json.dumps(answers[1]), orientation


def test_the_answer_is_what_predict_says(run: Run, photos: dict[int, Path], tmp_path: Path) -> None:
    answer = asked(run, photos[6], tmp_path / "asked")
    if run.record.task == "pretraining":
        assert answer["lines"][0] == "This model was trained without labels and names no class. What it takes for alike stands below."
        assert answer["near"]["items"]
        return
    said: Any
    (said,) = run.predict([photos[6]])
    if run.record.task == "classification":
        assert answer["lines"][0].startswith(f"It says {said.label} {said.confidence:.4f}; then ")
    elif run.record.task == "captioning":
        assert answer["lines"][0] == f"It says: {said.caption}"
    else:
        (picture,) = answer["views"]["masks"]["pictures"]
        assert picture["size"] == [36, 52]
        np.testing.assert_array_equal(unpacked(picture["predicted"])[0], said.mask)
        np.testing.assert_array_equal(unpacked(picture["confidence"])[0], np.rint(said.confidence * 255))


def test_inside_is_the_same_too(run: Run, photos: dict[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = list(photos.values())
    if run.record.task == "captioning":
        words = look_into_words(run.path, files, tmp_path / "words", figures=False)
        assert len({(image.caption, image.size, image.view) for image in words.images}) == 1
        return
    if run.record.task == "pretraining":
        return  # a network without attention has no map
    monkeypatch.setattr(pellucid.look, "draw", lambda *_, **__: [])
    findings = look_into(run.path, files, tmp_path / "inside", deletion=False)
    assert len({(image.size, image.view, image.prediction) for image in findings.images}) == 1
    for name, maps in np.load(tmp_path / "inside" / "arrays.npz").items():
        if name.startswith("maps/"):
            np.testing.assert_allclose(maps, np.repeat(maps[:1], len(maps), axis=0), rtol=1e-4, atol=1e-7, err_msg=name)


def test_words_are_true_of_one_picture(run: Run, photos: dict[int, Path], tmp_path: Path) -> None:
    answer = asked(run, photos[1], tmp_path / "asked")
    said = " ".join(texts(answer))
    for false in ("over epochs", "all pictures", "error map", "learned", "Use grad_cam", "these photographs", "miou", "knn", " cider", "_accuracy"):
        assert false not in said, false
    headline = next(iter(run.measurements.values()))
    assert answer["lines"][-1].startswith(f"How far to trust it: {headline.title} is {headline} (")
    assert "has no mask" not in said
    titles = {name: view["title"] for name, view in answer["views"].items()}
    attention = {"attention": "Where the model looks"}
    assert titles == {
        "classification": attention, "segmentation": {"masks": "Predicted mask"} | attention, "pretraining": {},
        "captioning": {"words": "Where it looked for each word"},
    }[run.record.task]  # fmt: skip
    if run.record.task == "pretraining":
        assert answer["lines"][1].startswith("There is no map of where it looked: that of a model that names no class is its attention")
    if "attention" in answer["views"]:
        view = answer["views"]["attention"]
        assert view["caption"] == "Measures of this picture"
        rows = [row for method in view["methods"] for row in method["steps"][-1]["measures"]]
        assert rows or run.record.task == "segmentation"  # the maps of so short a training may be 0 throughout
        assert {(row[2], row[3]) for row in rows} <= {("open", "one picture allows no verdict")}
