"""`pellucid inside` and a recipe's `inside:` end to end, on small models and pictures with masks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pellucid.data import scenes
from pellucid.errors import DataError, MissingError, UsageError
from pellucid.findings import load_findings
from pellucid.look import look_into
from pellucid.run import Run
from pellucid.train import train

Command = Callable[..., tuple[int, str, str]]
SMALL_VIT = ["pretrained=false", "image_size=64", "options.depth=2", "options.embed_dim=24", "options.num_heads=3", "num_classes=6", "resize_size=64"]
INSIDE = "inside: {samples: 6, features: 18, epochs: [first, last]}\n"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three oblong drawn scenes and their masks, large object 1, small one 2."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "masks").mkdir()
    for i in range(3):
        scene = scenes.draw(i, split="val", image_size=(64, 96))
        Image.fromarray(scene.image).save(folder / f"scene-{i}.png")
        values = np.where(scene.mask == 0, 0, np.where(scene.mask == 1 + scene.label, 1, 2)).astype(np.uint8)
        Image.fromarray(values).save(folder / "masks" / f"scene-{i}.png")
    return folder


@pytest.fixture(scope="module")
def inside_run(tmp_path_factory: pytest.TempPathFactory, small_recipe: str) -> Run:
    folder = tmp_path_factory.mktemp("inside")
    (folder / "recipe.yaml").write_text(small_recipe + INSIDE)
    return train(folder / "recipe.yaml", out=folder / "run", quiet=True)


def photographs(folder: Path) -> list[Path]:
    return sorted(folder.glob("scene-*.png"))


def test_the_command_writes_figures_arrays_and_findings(pellucid: Command, pictures: Path, tmp_path: Path) -> None:
    overrides = [part for text in SMALL_VIT for part in ("-s", text)]
    masks = ["--masks", pictures / "masks", "--mask-target", 1, "--mask-ignore", 2]
    code, out, _ = pellucid("inside", "timm/vit_tiny_patch16_224", *photographs(pictures), "--out", tmp_path / "out", *overrides, *masks, "--json", "--quiet")
    assert code == 0
    answer = json.loads(out)
    assert answer["out"] == str(tmp_path / "out")
    found = load_findings(tmp_path / "out")
    assert [kind.method for kind in found.maps] == ["attention", "rollout", "relevance", "grad_cam"]
    assert {(s.method, s.measure) for s in found.scores} == {
        (kind.method, measure) for kind in found.maps for measure in ("pointing", "mass", "rank", "iou", "auc", "randomisation")
    }
    assert all(set(s.baselines) == {"uniform", "centre", "shuffled", "random model"} for s in found.scores if s.measure != "randomisation")
    assert [Path(image.file).name for image in found.images] == ["scene-0.png", "scene-1.png", "scene-2.png"]
    assert found.images[0].size == (64, 96)
    assert found.images[0].view == (0.0, 16.0, 64.0, 64.0)
    with np.load(tmp_path / "out" / "arrays.npz") as arrays:
        assert arrays["maps/attention"].shape == (3, 4, 4)
        assert arrays["target/4x4"].shape == (3, 4, 4)
        assert arrays["positions"].shape == (4, 4, 4, 4)
        assert arrays["heads/blocks.1.attn"].shape == (3, 3, 4, 4)
    for name in ("000-scene-0", "000-scene-0-heads", "scores", "positions"):
        assert all((tmp_path / "out" / f"{name}.{kind}").is_file() for kind in ("png", "svg", "pdf"))
    with Image.open(tmp_path / "out" / "000-scene-0-attention.png") as overlay:
        assert overlay.size == (96, 64)  # at the photograph's own resolution
    assert answer["images"][0]["file"] == found.images[0].file


def test_without_masks_deletion_and_insertion_are_measured(pellucid: Command, pictures: Path, tmp_path: Path) -> None:
    overrides = [part for text in SMALL_VIT for part in ("-s", text)]
    code, out, told = pellucid("inside", "timm/vit_tiny_patch16_224", photographs(pictures)[0], "--out", tmp_path, *overrides, "--map", "attention", "-q")
    assert code == 0, told
    assert [line.split()[:2] for line in out.splitlines()[2:-1]] == [["attention", "deletion"], ["attention", "insertion"], ["attention", "randomisation"]]
    assert out.splitlines()[-1] == str(tmp_path)


def test_a_run_knows_the_labels_of_its_own_photographs(inside_run: Run, pictures: Path, tmp_path: Path) -> None:
    found = look_into(inside_run.path, photographs(pictures), tmp_path, methods=["attention"])
    assert found.classes == inside_run.data.classes
    assert {image.prediction for image in found.images} <= set(found.classes)
    assert found.weights.startswith("final weights")


def test_a_recipe_keeps_and_reports_what_is_inside(inside_run: Run) -> None:
    found = load_findings(inside_run.inside)
    assert found.epochs == [1, 2]
    assert [p.name for p in found.projections] == ["pca-last", "pca-each", "tsne"]
    assert all([panel.epoch for panel in p.panels] == [1, 2] for p in found.projections)
    assert len(found.images) == 6
    hashed = inside_run.record.files
    assert {"inside/findings.json", "inside/arrays.npz", "snapshots/probe.npz", "snapshots/epoch-0001.npz", "snapshots/epoch-0002.npz"} <= set(hashed)
    with np.load(inside_run.inside / "arrays.npz") as arrays:
        assert np.array_equal(arrays["maps/attention/2"], arrays["maps/attention"])  # the last epoch's weights are the final ones
        assert not np.array_equal(arrays["maps/attention/1"], arrays["maps/attention"])
    page = inside_run.report_file.read_text(encoding="utf-8")
    for method in ("attention", "rollout", "relevance", "grad_cam"):
        assert f"{method}" in page
    assert "the centre prior" in page
    assert (inside_run.figures / "inside" / "scores.png").is_file()
    assert (inside_run.figures / "inside" / "projection-tsne.png").is_file()


def test_the_same_recipe_finds_the_same(inside_run: Run, tmp_path: Path) -> None:
    again = train(inside_run.recipe_file, out=tmp_path / "again", quiet=True, figures=False)
    for name in ("arrays.npz", "findings.json"):
        assert (again.inside / name).read_bytes() == (inside_run.inside / name).read_bytes()


def test_bad_input_is_named_and_nothing_is_written(pictures: Path, tmp_path: Path) -> None:
    out, photo = tmp_path / "out", photographs(pictures)[0]
    with pytest.raises(MissingError, match="nowhere.jpg: no such image or folder"):
        look_into("timm/resnet10t", ["nowhere.jpg"], out, overrides=["pretrained=false"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="there is no image in this folder"):
        look_into("timm/resnet10t", [tmp_path / "empty"], out, overrides=["pretrained=false"])
    with pytest.raises(UsageError, match=r"Did you mean 'vit_tiny_patch16_224'"):
        look_into("timm/vit_tiny_patch16_22", [photo], out, overrides=["pretrained=false"])
    with pytest.raises(DataError, match=r"1 of 1 photographs have no mask: .*scene-0.png. Name it as the photograph, with .png."):
        look_into("timm/resnet10t", [photo], out, overrides=["pretrained=false"], masks=tmp_path / "empty")
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(tmp_path / "empty" / "scene-0.png")
    with pytest.raises(DataError, match="expected a mask of 64x96 pixels"):
        look_into("timm/resnet10t", [photo], out, overrides=["pretrained=false"], masks=tmp_path / "empty")
    with pytest.raises(DataError, match="none has a target; give the values that mark the target with --mask-target"):
        look_into("timm/resnet10t", [photo], out, overrides=["pretrained=false"], masks=pictures / "masks", mask_target=[9])
    with pytest.raises(DataError, match="so that any map would be right; give the values"):
        look_into("timm/resnet10t", [photo], out, overrides=["pretrained=false"], masks=pictures / "masks", mask_target=[0, 1, 2])
    with pytest.raises(UsageError, match="--mask-target and --mask-ignore need --masks"):
        look_into("timm/resnet10t", [photo], out, overrides=["pretrained=false"], mask_target=[1])
    with pytest.raises(UsageError, match="there is no map 'gradcam'. Did you mean 'grad_cam'"):
        look_into("timm/resnet10t", [photo], out, overrides=["pretrained=false", "image_size=64"], methods=["gradcam"])
    with pytest.raises(UsageError, match="no attention ran in this model"):
        look_into("timm/resnet10t", [photo], out, overrides=["pretrained=false", "image_size=64"], methods=["attention"])
    assert not out.exists()


def test_a_method_that_the_model_cannot_have_is_refused_before_training(small_recipe: str, tmp_path: Path) -> None:
    convolutional = "model: {name: timm/resnet10t}\n"
    lines = [convolutional.rstrip() if line.startswith("model:") else line for line in small_recipe.splitlines()]
    (tmp_path / "recipe.yaml").write_text("\n".join(lines) + "\ninside: {samples: 2, features: 0, methods: [grad_cam, rollout]}\n")
    with pytest.raises(UsageError, match=r"inside.methods: the model has no class token|inside.methods: .*attention"):
        train(tmp_path / "recipe.yaml", out=tmp_path / "run", quiet=True, figures=False)
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_looked_at_loses_no_number(small_recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipe.yaml").write_text(small_recipe + INSIDE)

    def fail(*args: object, **kwargs: object) -> None:
        raise UsageError("no eyes")

    monkeypatch.setattr("pellucid.look.look", fail)
    run = train(tmp_path / "recipe.yaml", out=tmp_path / "run", quiet=True, figures=False)
    assert run.record.status == "done"
    assert "val/accuracy" in run.measurements
    assert "nothing was found inside: no eyes" in run.record.notes
    assert run.report_file.is_file()
