"""Images without labels: every file counts, nothing about content is missed, and only pre-training takes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pellucid import recipe as recipes
from pellucid.data.check import check
from pellucid.data.dataset import Dataset
from pellucid.data.sources import load_dataset
from pellucid.errors import DataError, RecipeError
from pellucid.recipe import DataSection

RECIPE = """\
task: pretraining
data: {{source: {source}, train: {train}, val: 0.25, image_size: 32}}
model: {{name: timm/test_resnet}}
method: {{name: simclr}}
augment: {{random_resized_crop: [0.2, 1.0], horizontal_flip: 0.5}}
train:
  batch_size: 4
  threads: 1
  phases: [{{epochs: 1, optimizer: {{name: adamw, lr: 1e-3}}}}]
"""


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def write(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (34, 40, 3), np.uint8)).save(path, "PNG")


@pytest.fixture
def loose(tmp_path: Path) -> Path:
    """A folder of pictures at several depths, with a list of classes that is not theirs."""
    folder = tmp_path / "pictures"
    for i in range(9):
        write(folder / f"{i}.png", i)
    write(folder / "deep" / "er" / "a.png", 20)
    write(folder / "deep" / "b.png", 21)
    (folder / "classes.txt").write_text("cat\ndog\n")
    return folder


def load(source: str, train: Path, **settings: object) -> Dataset:
    return load_dataset(DataSection(source=source, train=str(train), **settings), seed=1, fewest_classes=1)  # type: ignore[arg-type]


def test_every_image_below_the_folder_is_a_sample_of_one_class(loose: Path) -> None:
    data = load("images", loose)
    train = data.splits["train"]
    assert data.classes == ("unlabelled",)
    assert list(train.names) == [*(f"{i}.png" for i in range(9)), "deep/b.png", "deep/er/a.png"]
    assert train.labels.tolist() == [0] * 11
    assert train.open(9).size == (40, 34)
    assert data.problems == []


def test_val_is_a_folder_or_a_fraction_by_content(loose: Path, tmp_path: Path) -> None:
    write(tmp_path / "val" / "x.png", 50)
    assert list(load("images", loose, val=str(tmp_path / "val")).splits["val"].names) == ["x.png"]
    halves = load("images", loose, val=0.5).splits
    assert sorted([*halves["train"].names, *halves["val"].names]) == sorted(load("images", loose).splits["train"].names)
    assert min(len(half) for half in halves.values()) > 0


def test_duplicates_leaks_and_bad_files_are_found_without_labels(loose: Path, tmp_path: Path) -> None:
    (loose / "deep" / "copy.png").write_bytes((loose / "3.png").read_bytes())
    (loose / "empty.png").write_bytes(b"")
    (loose / "notes.txt").write_text("of the journey")
    val = tmp_path / "val"
    val.mkdir()
    (val / "seen.png").write_bytes((loose / "5.png").read_bytes())
    report = check(DataSection(source="images", train=str(loose), val=str(val)), seed=1, fewest_classes=1)
    assert [(p.split, p.file, p.kind, p.detail) for p in report.problems] == [
        ("train", "notes.txt", "other_file", "the ending is no image's: not used"),
        ("train", "empty.png", "zero_size", "the file is empty (0 bytes)"),
        ("train", "deep/copy.png", "duplicate", "same content as 3.png"),
        ("val", "seen.png", "leak", "same content as 5.png in train"),
    ]
    assert report.counts("train") == {"unlabelled": 12}
    with pytest.raises(DataError, match=r"1 of 14 images cannot be used:\n  train: empty.png: zero_size"):
        load("images", loose, val=str(val))


def test_an_empty_folder_says_what_was_expected(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match=r"none: expected images for data.train, found none. source: images reads every image below <train>"):
        load("images", tmp_path / "none")


def test_one_class_folder_is_enough_for_pretraining_alone(tmp_path: Path) -> None:
    for i in range(4):
        write(tmp_path / "train" / "all" / f"{i}.png", i)
    assert load("folder", tmp_path / "train").classes == ("all",)
    with pytest.raises(DataError, match=r"train: expected at least two classes, got 1 \(all\)"):
        load_dataset(DataSection(source="folder", train=str(tmp_path / "train")), seed=1)
    assert recipes.loads(RECIPE.format(source="folder", train=tmp_path)).fewest_classes == 1
    assert recipes.loads(CLASSIFICATION.format(source="folder")).fewest_classes == 2


CLASSIFICATION = """\
task: classification
data: {{source: {source}, train: x, image_size: 32}}
model: {{name: timm/test_resnet}}
train: {{batch_size: 4, phases: [{{epochs: 1, optimizer: {{name: adamw, lr: 1e-3}}}}]}}
"""


def refusal(text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        recipes.loads(text)
    return str(caught.value)


def test_other_tasks_refuse_images_without_labels(loose: Path) -> None:
    said = refusal(CLASSIFICATION.format(source="images"))
    assert "data: source: images has no labels and belongs to pretraining; classification takes folder, prefix or table" in said
    masked = CLASSIFICATION.format(source="images").replace("classification", "segmentation").replace("timm/test_resnet", "pellucid/fcn32s")
    assert "source: segmentation needs a mask for each image: pairs or scenes; images has none" in refusal(masked)
    with pytest.raises(DataError, match=r"at least two classes, got 1 \(unlabelled\). source: images reads .* for task: pretraining"):
        load_dataset(DataSection(source="images", train=str(loose)), seed=1)


def test_pretraining_refuses_masks_and_names_of_classes_that_nobody_has() -> None:
    said = refusal(RECIPE.format(source="pairs", train="x").replace("val: 0.25, ", ""))
    assert "source: pairs has masks, and pretraining looks at images alone; take source: images" in said
    said = refusal(RECIPE.format(source="images", train="x").replace("val: 0.25", "classes: [a, b]"))
    assert "classes belongs to sources with labels, and images has none; leave it out" in said


def test_data_check_and_plan_work_without_labels(loose: Path, tmp_path: Path, pellucid: Callable[..., tuple[int, str, str]]) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE.format(source="images", train=loose))
    code, out, _ = pellucid("data", "check", tmp_path / "r.yaml", "--json")
    found = json.loads(out)
    assert (code, found["classes"], found["problems"]) == (0, ["unlabelled"], [])
    assert sum(split["n"] for split in found["splits"].values()) == 11
    code, out, _ = pellucid("data", "check", tmp_path / "r.yaml")
    assert code == 0
    assert "unlabelled" in out
    code, out, err = pellucid("plan", tmp_path / "r.yaml", "--json")
    assert code == 0, err
    plan = json.loads(out)
    assert (plan["class_names"], sum(plan["images"].values())) == (["unlabelled"], 11)


def test_a_real_folder_of_classes_is_read_without_them(photographs: Path) -> None:
    data = load("images", photographs / "pretrain", val=0.1)
    assert data.classes == ("unlabelled",)
    assert sum(len(split) for split in data.splits.values()) == 6400
