"""The recipe: YAML 1.2, places of faults, their wording, overrides, extends, schema."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from pellucid import recipe as recipes
from pellucid.errors import MissingError, RecipeError
from pellucid.recipe import _sections

GOOD = """\
task: classification
data:
  source: scenes
  train: 100
  val: 20
  image_size: 64
model: {name: timm/test_vit}
train:
  batch_size: 16
  phases:
    - {epochs: 2, optimizer: {name: adam, lr: 1e-3}, schedule: {name: noam, warmup_steps: 3}}
"""


def faults(text: str, tmp_path: Path, *overrides: str) -> list[str]:
    """The problems of a recipe text, without the folder."""
    file = tmp_path / "r.yaml"
    file.write_text(text)
    with pytest.raises(RecipeError) as caught:
        recipes.load(file, overrides)
    return [str(p).replace(str(file), "r.yaml") for p in caught.value.problems]


def changed(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (changed("source: scenes", "source: scnes"), "r.yaml:3:3: data.source: expected one of folder, prefix, table, images, pairs, captions, scenes, digits, torchvision:<Name>, huggingface:<name>; got 'scnes'. Did you mean 'scenes'?"),
        (changed("train: 100", "train: photos"), "r.yaml:2:1: data: source scenes takes a number of images for train, got "),
        (changed("source: scenes", "source: folder"), "r.yaml:2:1: data: source folder takes a path for train, got the number 100"),
        (changed("val: 20", "val: 1.5"), "r.yaml:2:1: data: val as a fraction lies between 0 and 1, got 1.5"),
        (changed("image_size: 64", "image_sise: 64"), "r.yaml:6:3: unknown key 'image_sise' in data. Did you mean 'image_size'?"),
        (changed("image_size: 64", "image_size: '64'"), "r.yaml:6:3: data.image_size: expected a whole number or a list; got '64' (text)"),
        (changed("image_size: 64", "image_size: 64\n  resize_size: 32"), "r.yaml:2:1: data: resize_size belongs to fit: crop and is at least image_size"),
        (changed("timm/test_vit", "tim/test_vit"), "r.yaml:7:1: model: name: expected timm/<name> or torchvision/<name> or smp/<name> or transformers/<name> or pellucid/<name>, got 'tim/test_vit'. Did you mean 'timm'?"),
        (changed("test_vit}", "test_vit, pretrained: no}"), "r.yaml:7:30: model.pretrained: expected true or false; got 'no' (text)"),
        (changed("test_vit}", "test_vit, pretrained: true, weights: w.pth}"), "r.yaml:7:1: model: give pretrained: true or weights: FILE, not both"),
        (changed("name: adam", "name: adamm"), "r.yaml:11:31: train.phases.0.optimizer.name: expected adam, adamw, sgd, lars; got 'adamm'. Did you mean 'adam'?"),
        (changed("lr: 1e-3", "lr: 0"), "r.yaml:11:43: train.phases.0.optimizer.lr: expected greater than 0; got 0"),
        (changed("lr: 1e-3", "lr: 1e-3, wieght_decay: 0.1"), "r.yaml:11:53: unknown key 'wieght_decay' in train.phases.0.optimizer. Did you mean 'weight_decay'?"),
        (changed("name: noam", "name: noom"), "r.yaml:11:65: train.phases.0.schedule.name: expected constant, cosine, linear, noam, step; got 'noom'. Did you mean 'noam'?"),
        (changed(", warmup_steps: 3", ""), "r.yaml:11:54: train.phases.0.schedule: schedule noam needs warmup_steps or warmup_epochs"),
        (changed("warmup_steps: 3", "warmup_steps: 3, warmup_epochs: 1"), "r.yaml:11:54: train.phases.0.schedule: give warmup_steps or warmup_epochs, not both"),
        (changed("epochs: 2, ", ""), "r.yaml:11:7: train.phases.0.epochs is missing"),
        (changed("batch_size: 16", "batch_size: 16.5"), "r.yaml:9:3: train.batch_size: expected a whole number; got 16.5"),
        (GOOD + "augment: {random_resized_crop: [0.7, 1.5]}\n", "r.yaml:12:11: augment.random_resized_crop: expected [least, most] with least <= most <= 1, got [0.7, 1.5]"),
        (GOOD + "augment: {random_resized_crop: [0.7, 1.0], random_crop: 4}\n", "r.yaml:12:1: augment: give random_resized_crop or random_crop, not both"),
        (GOOD + "augment: {color_jitter: [0.1, 0.1, 0.1, 0.9]}\n", "r.yaml:12:11: augment.color_jitter: expected a hue (the fourth number) of at most 0.5, got 0.9"),
        (GOOD + "augment: {crop_ratio: [2, 1]}\n", "r.yaml:12:11: augment.crop_ratio: expected [least, most], got [2.0, 1.0]"),
        (GOOD + "model2: 3\n", "r.yaml:12:1: unknown key 'model2' in the recipe. Did you mean 'model'?"),
        (GOOD + "seed: -1\n", "r.yaml:12:1: seed: expected greater than or equal to 0; got -1"),
        (GOOD + "seed: 1\nseed: 2\n", "r.yaml:13:1: not valid YAML: found duplicate key \"seed\""),
        (changed("task: classification", "task: clasification"), "r.yaml:1:1: task: expected classification, pretraining, segmentation, captioning; got 'clasification'. Did you mean 'classification'?"),
        ("- 1\n- 2\n", "r.yaml:1:1: expected a mapping with task, data, model and train, got the list [1, 2]"),
        ("", "r.yaml:1:1: expected a mapping with task, data, model and train, got nothing"),
        ("task: [\n", "r.yaml:2:1: not valid YAML: "),
        (changed("phases:\n", "phases: 3\n  phasez:\n"), "r.yaml:10:3: train.phases: expected a list; got 3"),
        (changed("  val: 20\n", "").replace("batch_size: 16", "keep: best"), "r.yaml:1:1: train.keep: best needs data.val"),
    ],
)  # fmt: skip
def test_each_fault_is_named_with_its_place_and_remedy(text: str, expected: str, tmp_path: Path) -> None:
    found = faults(text, tmp_path)
    assert any(line.startswith(expected) for line in found), found


def test_all_faults_of_a_file_come_at_once_in_order(tmp_path: Path) -> None:
    text = GOOD.replace("train: 100", "trian: 100").replace("batch_size: 16", "batch_size: many").replace("lr: 1e-3", "lr: fast")
    found = faults(text, tmp_path)
    assert [line.split(": ")[0] for line in found] == ["r.yaml:2:1", "r.yaml:4:3", "r.yaml:9:3", "r.yaml:11:43"]
    assert found[0] == "r.yaml:2:1: data: source scenes needs train: a number of images"


def test_faults_between_keys_come_with_the_others(tmp_path: Path) -> None:
    """The conflict of two crops, though the same section has a wrong hue, and a missing val though another section is wrong."""
    text = GOOD.replace("batch_size: 16", "batch_size: 16.5\n  keep: best").replace("  val: 20\n", "")
    found = faults(text + "augment: {random_resized_crop: [0.7, 1.0], random_crop: 4, rotation: far}\n", tmp_path)
    assert [line.split(": ", 1)[1][:40] for line in found] == [
        "train.keep: best needs data.val",
        "train.batch_size: expected a whole numbe",
        "augment: give random_resized_crop or ran",
        "augment.rotation: expected a number; got",
    ]


@pytest.mark.parametrize("text", ["? [a, b]\n: c\n", "a: &a {x: *a}\n"])
def test_odd_yaml_is_an_error_with_its_place(text: str, tmp_path: Path) -> None:
    assert faults(text, tmp_path)[0].startswith("r.yaml:1:")


def test_yaml_is_read_as_version_1_2(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(GOOD.replace("image_size: 64", "image_size: 64\n  classes: [no, yes, on, 'off']"))
    loaded = recipes.load(file)
    assert loaded.data.classes == ["no", "yes", "on", "off"]
    assert loaded.train.phases[0].optimizer.lr == 0.001


def test_a_saved_recipe_holds_every_value_and_loads_back_equal(tmp_path: Path) -> None:
    recipe = recipes.loads(GOOD)
    recipes.save(recipe, tmp_path / "resolved.yaml")
    assert recipes.load(tmp_path / "resolved.yaml") == recipe
    assert "color_jitter_probability: 1.0" in (tmp_path / "resolved.yaml").read_text()


def test_overrides_reach_lists_and_name_themselves_in_faults(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(GOOD)
    recipe = recipes.load(file, ["train.phases.0.optimizer.lr=3e-4", "train.ema.decay=0.99", "data.val=0.5"])
    assert recipe.train.phases[0].optimizer.lr == 3e-4
    assert recipe.train.ema is not None
    assert recipe.train.ema.decay == 0.99
    assert faults(GOOD, tmp_path, "train.ema.decay=2") == ["-s train.ema.decay=2: train.ema.decay: expected less than 1; got 2"]
    assert faults(GOOD, tmp_path, "tran.ema=2")[0] == "-s tran.ema=2: unknown key 'tran' in the recipe. Did you mean 'train'?"
    assert faults(GOOD, tmp_path, "train.phases.7.epochs=2") == ["-s train.phases.7.epochs=2: there is nothing at 'train.phases.7.epochs' that could be set"]
    assert faults(GOOD, tmp_path, "seed") == ["-s seed: expected key.path=value, for example train.batch_size=64"]


def test_paths_start_at_the_file_that_holds_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "below").mkdir()
    folder = GOOD.replace("source: scenes", "source: folder").replace("train: 100", "train: photos/train").replace("val: 20", "val: 0.2")
    (tmp_path / "below" / "base.yaml").write_text(folder)
    (tmp_path / "top.yaml").write_text("extends: below/base.yaml\ndata:\n  val: ${PHOTOS:-here}/val\ntrain: {batch_size: 8}\n")
    recipe = recipes.load(tmp_path / "top.yaml")
    assert recipe.data.train == str(tmp_path / "below" / "photos" / "train")
    assert recipe.data.val == str(tmp_path / "here" / "val")
    assert recipe.train.batch_size == 8
    assert recipe.data.image_size == 64
    monkeypatch.setenv("PHOTOS", "/photos")
    assert recipes.load(tmp_path / "top.yaml").data.val == "/photos/val"


def test_a_variable_that_is_not_set_is_an_error(tmp_path: Path) -> None:
    text = GOOD.replace("source: scenes", "source: folder").replace("train: 100", "train: ${NOT_SET_ANYWHERE}/x").replace("val: 20", "val: 0.2")
    assert faults(text, tmp_path) == ["r.yaml:4:3: the environment variable NOT_SET_ANYWHERE is not set; set it or write ${NOT_SET_ANYWHERE:-default}"]


def test_extends_is_flat_and_its_faults_name_the_file_that_holds_them(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(GOOD.replace("batch_size: 16", "batch_sise: 16"))
    found = faults("extends: base.yaml\nseed: 3\n", tmp_path)
    assert found == [f"{tmp_path}/base.yaml:9:3: unknown key 'batch_sise' in train. Did you mean 'batch_size'?"]
    (tmp_path / "base.yaml").write_text("extends: other.yaml\n" + GOOD)
    assert "a recipe that is extended may not extend another one" in faults("extends: base.yaml\n", tmp_path)[0]
    assert "there is no such file beside this recipe" in faults("extends: nowhere.yaml\n", tmp_path)[0]


def test_a_missing_recipe_says_where_recipes_are(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no such recipe. `pellucid recipes ls` shows those that come with Pellucid"):
        recipes.load(tmp_path / "none.yaml")


def test_the_json_schema_accepts_good_recipes_and_refuses_unknown_keys() -> None:
    schema = recipes.json_schema()
    validator = jsonschema.Draft202012Validator(json.loads(json.dumps(schema)))
    good = recipes.loads(GOOD).model_dump(mode="json")
    assert list(validator.iter_errors(good)) == []
    assert list(validator.iter_errors({**good, "modle": 1}))


def test_every_field_has_a_description() -> None:
    def sections(kind: type[recipes.Section]) -> list[type[recipes.Section]]:
        found = [kind]
        for field in kind.model_fields.values():
            for inner in _sections(field.annotation):
                found += sections(inner)
        return found

    missing = [f"{s.__name__}.{n}" for s in sections(recipes.Recipe) for n, f in s.model_fields.items() if not f.description]
    assert missing == []


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("train.threads", "99999999999", "less than or equal to 4096"),
        ("data.workers", "5000", "less than or equal to 4096"),
        ("data.train", "999999999", "draws at most 10,000,000 images for train, got 999,999,999"),
        ("train.phases.0.epochs", "9" * 300, "less than or equal to 1000000"),
        ("train.batch_size", "9" * 30, "less than or equal to 1000000000"),
    ],
)
def test_numbers_that_no_machine_can_follow_are_refused(small_recipe: str, key: str, value: str, told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        recipes.override(recipes.loads(small_recipe), [f"{key}={value}"])


def test_a_run_folder_reads_back_what_is_longer_than_a_recipe_may_be(small_recipe: str, tmp_path: Path) -> None:
    """20,000 classes in a list: 360 kB as written, more with every value written out."""
    classes = ", ".join(f"class-{i:09d}-" for i in range(20_000))
    long = recipes.loads(small_recipe.replace("image_size: 32}", f"image_size: 32, classes: [{classes}]}}"))
    recipes.save(long, tmp_path / "resolved.yaml")
    assert (tmp_path / "resolved.yaml").stat().st_size > recipes.MAX_BYTES
    assert recipes.load(tmp_path / "resolved.yaml", most_bytes=20 * recipes.MAX_BYTES) == long


def test_photographs_and_masks_start_at_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PICTURES", "/pictures")
    folder = GOOD.replace("source: scenes\n  train: 100\n  val: 20", "source: folder\n  train: t\n  val: v\n  classes: [a, b]")
    (tmp_path / "r.yaml").write_text(folder + "inside: {images: [a.jpg, ../b.jpg, '${PICTURES}/c.jpg'], masks: m}\n")
    monkeypatch.chdir("/")
    recipe = recipes.load(tmp_path / "r.yaml", ["inside.images.1=d.jpg"])
    assert recipe.inside is not None
    assert recipe.inside.images == [f"{tmp_path}/a.jpg", "/d.jpg", "/pictures/c.jpg"]
    assert recipe.inside.masks == f"{tmp_path}/m"
    assert recipe.data.classes == ["a", "b"], "names, not paths"
    assert recipes.load(tmp_path / "r.yaml", ["inside.images=[x.jpg]"]).inside.images == ["/x.jpg"]  # type: ignore[union-attr]
    assert recipes.loads(recipes.to_yaml(recipe)) == recipe
    (tmp_path / "r.yaml").write_text(folder + "inside: {images: [a.jpg, '${NOWHERE}/c.jpg']}\n")
    with pytest.raises(RecipeError, match=r"r.yaml:13:26: the environment variable NOWHERE is not set"):
        recipes.load(tmp_path / "r.yaml")
