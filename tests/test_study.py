"""A study: its file with every fault in its place, what is trained and what is not, and what interrupts it."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conftest import REPOSITORY
from pellucid.errors import InterruptedError, MissingError, RecipeError, RunError, UsageError
from pellucid.files import file_hash
from pellucid.recipe import load as load_recipe
from pellucid.run import Run
from pellucid.schema.study import Study
from pellucid.study import run_study
from pellucid.study_file import load_study
from pellucid.study_record import StudyFolder
from pellucid.study_workers import Outcome, _end

STUDY = """\
recipe: base.yaml
seeds: [1, 2]
measure: val/accuracy
final: C
shared:
  own: {recipe: base.yaml, set: {seed: 7, train.phases.0.epochs: 1, data.normalize: dataset}}
settings:
  A: {label: from scratch}
  C: {label: own weights, set: {train.batch_size: 25}, from: {model.weights: own}}
"""


@pytest.fixture
def study_file(small_recipe: str, tmp_path: Path) -> Path:
    return written(tmp_path, small_recipe, STUDY)


@pytest.fixture(scope="module")
def finished(small_recipe: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which `study.yaml` was run into `out`; read only."""
    folder = tmp_path_factory.mktemp("study")
    run_study(written(folder, small_recipe, STUDY), out=folder / "out", at_once=2, quiet=True)
    return folder


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """The folder of a finished study that a test may change; its recipe and study file lie beside it."""
    shutil.copytree(finished, tmp_path / "there")
    return tmp_path / "there"


def written(folder: Path, recipe: str, study: str) -> Path:
    (folder / "base.yaml").write_text(recipe)
    (folder / "study.yaml").write_text(study)
    return folder / "study.yaml"


def weights(folder: Path) -> dict[str, str]:
    """{path in the study: hash} of the weights of every run."""
    return {str(file.relative_to(folder)): file_hash(file) for file in sorted(folder.glob("*/**/final.safetensors"))}


def closed() -> Iterator[Outcome]:
    """What `train_here` gives of no jobs."""
    yield from ()


def times(folder: Path) -> dict[str, int]:
    return {str(file.relative_to(folder)): file.stat().st_mtime_ns for file in folder.glob("*/**/run.json")}


# ── the file ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("seeds: [1, 2]", "seds: 2", "study.yaml:2:1: unknown key 'seds' in the study. Did you mean 'seeds'?"),
        ("seeds: [1, 2]", "seeds: [1, 1]", "study.yaml:2:12: seeds: 1 stands there twice"),
        ("seeds: [1, 2]", "seeds: 0", "study.yaml:2:1: seeds: expected"),
        ("seeds: [1, 2]", "seeds: 1001", "study.yaml:2:1: seeds: expected less than or equal to 1000"),
        ("seeds: [1, 2]", "seeds: [4294967296]", "study.yaml:2:9: seeds.0: expected less than 4294967296; got 4294967296"),
        ("recipe: base.yaml\nseeds", "recipe: bass.yaml\nseeds", "study.yaml:1:1: recipe: there is no file 'bass.yaml' where the study lies"),
        ("recipe: base.yaml, set", "recipe: bass.yaml, set", "study.yaml:6:9: shared.own.recipe: there is no file 'bass.yaml'"),
        ("measure: val/accuracy", "measure: accuracy", "study.yaml:3:1: measure: expected split/name, for example val/accuracy; got 'accuracy'"),
        ("final: C", "final: CC", "study.yaml:4:1: final: there is no setting 'CC'. Did you mean 'C'? Known: A, C."),
        ("final: C", "baseline: 3", "study.yaml:4:1: baseline: expected text; got 3"),
        ("label: from scratch", "lable: from scratch", "study.yaml:8:7: unknown key 'lable' in settings.A. Did you mean 'label'?"),
        ("A: {", "a/b: {", "study.yaml:8:3: settings.a/b"),
        ("  A: {label", "  own: {label", "study.yaml:8:3: settings.own: a shared run has this name; give one of them another"),
        ("model.weights: own", "model.weights: won", "study.yaml:9:63: settings.C.from: there is no shared run 'won'. Did you mean 'own'? Known: own."),
        ("model.weights: own", "model.wights: own", "settings.C.from: expected model.weights or model.backbone_weights; got 'model.wights'. Did you mean 'model.weights'?"),
        ("train.batch_size: 25", "model.weights: x", "study.yaml:9:59: settings.C: model.weights stands in set and in from; leave one out"),
        ("train.batch_size: 25", "seed: 3", "study.yaml:9:33: settings.C.set: the seeds of settings are those of the study: seeds"),
        ("train.batch_size: 25", "train.bach_size: 25", "study.yaml:9:33: setting C: unknown key 'bach_size' in train. Did you mean 'batch_size'?"),
        ("train.batch_size: 25", "train.batch_size: many", "study.yaml:9:33: setting C: train.batch_size: expected a whole number; got 'many' (text)"),
        ("train.batch_size: 25", "train.phases.3.epochs: 2", "study.yaml:9:33: setting C: there is nothing at 'train.phases.3.epochs' that could be set"),
        ("train.phases.0.epochs: 1", "train.phases.0.epochs: 0", "study.yaml:6:43: shared run own: train.phases.0.epochs: expected greater than or equal to 1; got 0"),
        (STUDY, "- a\n", "study.yaml:1:1: expected a mapping with recipe and settings"),
        ("settings:\n", "settings: {}\nx:\n", "study.yaml:7:1: settings: expected"),
    ],
)  # fmt: skip
def test_each_fault_of_a_study_is_named_with_its_place_and_remedy(study_file: Path, old: str, new: str, told: str) -> None:
    assert old in STUDY
    study_file.write_text(STUDY.replace(old, new, 1))
    with pytest.raises(RecipeError) as caught:
        load_study(study_file, folder=study_file.parent)
    assert told in str(caught.value)
    assert str(caught.value).startswith(str(study_file))


def test_a_fault_of_the_base_recipe_is_told_once_and_names_no_setting(study_file: Path) -> None:
    (study_file.parent / "base.yaml").write_text((study_file.parent / "base.yaml").read_text().replace("batch_size", "bach_size"))
    study_file.write_text(STUDY.replace("recipe: base.yaml, set", "recipe: own.yaml, set"))
    with pytest.raises(RecipeError, match="own.yaml"):
        load_study(study_file, folder=study_file.parent)
    study_file.write_text("recipe: base.yaml\nsettings: {A: , B: }\n")
    with pytest.raises(RecipeError) as caught:
        load_study(study_file, folder=study_file.parent)
    assert str(caught.value).count("bach_size") == 1
    assert f"{study_file.parent / 'base.yaml'}:6:3: unknown key 'bach_size' in train" in str(caught.value)


def test_a_study_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"none.yaml: no such study\.$"):
        load_study(tmp_path / "none.yaml", folder=tmp_path)


def test_settings_take_values_of_any_kind_and_their_paths_start_at_the_study(small_recipe: str, tmp_path: Path) -> None:
    folder = tmp_path / "below"
    folder.mkdir()
    (tmp_path / "base.yaml").write_text(small_recipe)
    (folder / "s.yaml").write_text(
        "recipe: ../base.yaml\nseeds: 3\nsettings:\n  A:\n  B: {set: {model.weights: w.pth, augment: {random_crop: 1}, "
        "train.phases: [{epochs: 4, optimizer: {name: sgd, lr: 0.1}}], data: {source: folder, train: ../images/t, val: v, image_size: 32}}}\n"
    )
    study = load_study(folder / "s.yaml", ["train.batch_size=8", "B:train.evaluate_every=2"], folder=tmp_path)
    base, changed = study.settings["A"].recipe, study.settings["B"].recipe
    assert (study.seeds, study.baseline, study.final, study.measure) == ([1, 2, 3], "A", None, None)
    assert (base.epochs, changed.epochs, changed.augment.horizontal_flip) == (2, 4, 0.0)
    assert (changed.model.weights, changed.data.train, changed.data.val) == (str(folder / "w.pth"), str(tmp_path / "images" / "t"), str(folder / "v"))
    assert (base.train.batch_size, changed.train.batch_size, base.train.evaluate_every, changed.train.evaluate_every) == (8, 8, 1, 2)


def test_an_override_reaches_whom_it_names(study_file: Path) -> None:
    study = load_study(study_file, ["own:train.batch_size=7", "train.batch_size=9", "C:seed=1"][:2], folder=study_file.parent)
    assert study.shared["own"].recipe.train.batch_size == 7
    assert [part.recipe.train.batch_size for part in study.settings.values()] == [9, 9]
    assert study.settings["C"].recipe.model.weights == str(study_file.parent / "shared/own/checkpoints/backbone.safetensors")
    for override, told in {
        "won:train.batch_size=7": "there is no setting or shared run 'won'. Did you mean 'own'? Known: own, A, C.",
        "seed=3": "the seeds of settings are those of the study; change seeds in its file",
        "C:seed=3": "the seeds of settings are those of the study",
    }.items():
        with pytest.raises(UsageError) as caught:
            load_study(study_file, [override], folder=study_file.parent)
        assert f"-s {override}: {told}" in str(caught.value)
    with pytest.raises(RecipeError, match=r"-s train.bach_size=1: unknown key 'bach_size' in train"):
        load_study(study_file, ["train.bach_size=1"], folder=study_file.parent)


def test_every_key_of_a_study_is_described() -> None:
    schema = Study.model_json_schema()
    fields = [field for part in [schema, *schema["$defs"].values()] for field in part["properties"].items()]
    assert {"recipe", "seeds", "from", "set", "label"} <= {name for name, _ in fields}
    assert all(field.get("description") for _, field in fields)


@pytest.mark.parametrize("file", sorted((REPOSITORY / "studies").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_study_that_comes_with_pellucid_resolves(file: Path, tmp_path: Path) -> None:
    study = load_study(file, folder=tmp_path)
    assert len(study.settings) > 1
    assert study.text.startswith(f"# pellucid study studies/{file.name}")


def test_the_comparison_of_vits_is_that_of_the_recipes(tmp_path: Path) -> None:
    study = load_study(REPOSITORY / "studies" / "vit-comparison.yaml", folder=tmp_path)
    for name, recipe in {"ViT-S": "vit-s16-224", "ViT-B-scratch": "vit-b16-scratch", "ViT-B": "vit-b16-384", "ViT-B-SAM": "vit-b16-sam"}.items():
        assert study.settings[name].recipe == load_recipe(REPOSITORY / "recipes" / f"{recipe}.yaml")


# ── what is trained ───────────────────────────────────────────────────────────────────────────────────────────


def test_every_run_has_the_bits_of_train_and_a_place_of_its_own(finished: Path, small_run: Path) -> None:
    from pellucid.train import train

    found = weights(finished / "out")
    assert list(found) == [
        *(f"runs/{name}/seed-{seed}/checkpoints/final.safetensors" for name in "AC" for seed in (1, 2)), "shared/own/checkpoints/final.safetensors"
    ]  # fmt: skip
    assert len(set(found.values())) == 5
    assert found["runs/A/seed-1/checkpoints/final.safetensors"] == file_hash(Run(small_run).final_weights)
    run = Run(finished / "out" / "runs" / "C" / "seed-2")
    again = train(run.path / "recipe.yaml", out=finished / "again", quiet=True, figures=False)
    assert file_hash(again.final_weights) == found["runs/C/seed-2/checkpoints/final.safetensors"]
    assert run.recipe.model.weights == str(finished / "out/shared/own/checkpoints/backbone.safetensors")
    assert run.record.command == ["pellucid", "study", str(finished / "study.yaml")]


def test_the_table_of_all_runs_stands_in_the_folder(finished: Path) -> None:
    record = StudyFolder(finished / "out").record
    assert (record.name, record.seeds, record.measure, record.baseline, record.final) == ("study", [1, 2], "val/accuracy", "A", "C")
    assert record.settings[1].changes == {"train.batch_size": 25, "model.weights": "of own"}
    assert (record.settings[1].shares, record.shared[0].name) == (["own"], "own")
    assert (finished / "out" / "study.yaml").read_text() == STUDY
    for name in ("table.txt", "table.md", "table.json", "study.html"):
        assert (finished / "out" / name).stat().st_size > 100
    assert not list((finished / "out").rglob(".lock"))


def test_a_second_time_trains_nothing_and_prints_the_table(copied: Path, finished: Path, pellucid: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr("pellucid.study.train_here", lambda jobs, **_: closed())
    before = times(copied / "out")
    code, out, err = pellucid("study", copied / "study.yaml", "--out", copied / "out")
    assert (code, err) == (0, "5 runs: 5 finished, 0 to go on with, 0 to train\n")
    assert out.splitlines()[-1] == str(copied / "out")
    assert (copied / "out" / "table.txt").read_text().splitlines()[0] in out
    assert times(copied / "out") == before
    code, out, err = pellucid("study", copied / "study.yaml", "--out", copied / "out", "--json", "--quiet")
    assert (code, err, json.loads(out)["study"], json.loads(out)["failed"]) == (0, "", str(copied / "out"), {})


def test_an_extended_study_trains_what_is_new(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = times(copied / "out")
    (copied / "study.yaml").write_text(STUDY.replace("[1, 2]", "[1]") + "  E: {set: {train.phases.0.epochs: 1}}\n")
    result = run_study(copied / "study.yaml", out=copied / "out")
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["4 runs: 3 finished, 0 to go on with, 1 to train", "training E, seed 1"]
    assert lines[2].startswith("4 of 4: E, seed 1: val/accuracy 0.")
    after = times(copied / "out")
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {"runs/E/seed-1/run.json"}
    assert [setting.name for setting in result.folder.record.settings] == ["A", "C", "E"]


def test_the_headline_is_measured_where_nothing_is_named(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copied / "study.yaml").write_text(STUDY.replace("measure: val/accuracy\n", ""))
    assert run_study(copied / "study.yaml", out=copied / "out", quiet=True).folder.record.measure == "val/accuracy"


def test_a_changed_study_is_refused_before_training(copied: Path) -> None:
    before = times(copied / "out")
    (copied / "study.yaml").write_text(STUDY.replace("batch_size: 25", "batch_size: 10"))
    with pytest.raises(RunError) as caught:
        run_study(copied / "study.yaml", out=copied / "out", overrides=["own:train.phases.0.epochs=2"], quiet=True)
    assert "shared/own: own was begun with another recipe: train.phases.0.epochs (1 then, 2 now)." in str(caught.value)
    assert "runs/C/seed-2: C, seed 2 was begun with another recipe: train.batch_size (25 then, 10 now)." in str(caught.value)
    assert "runs/A" not in str(caught.value)
    assert "Nothing was trained. Put the values back, give the changed setting another name, or remove these folders." in str(caught.value)
    assert times(copied / "out") == before


def test_other_weights_of_a_shared_run_are_refused(copied: Path) -> None:
    shared = Run(copied / "out" / "shared" / "own")
    shutil.copy(Run(copied / "out" / "runs" / "A" / "seed-1").final_weights, shared.backbone_weights)
    with pytest.raises(RunError, match="C, seed 1 began with other weights .model.weights. than are now in .*own.*: the shared run was trained anew"):
        run_study(copied / "study.yaml", out=copied / "out", quiet=True)


def test_equal_weights_of_a_shared_run_that_was_trained_anew_are_taken(copied: Path) -> None:
    from pellucid.models import read_metadata, read_weights, save_weights

    shared = Run(copied / "out" / "shared" / "own").backbone_weights
    before, tensors, said = file_hash(shared), read_weights(shared), read_metadata(shared)
    save_weights(tensors, shared, said | {"run": "another", "pellucid": "9.9"})
    assert file_hash(shared) != before
    assert run_study(copied / "study.yaml", out=copied / "out", quiet=True).failed == {}
    save_weights(tensors, shared, said | {"mean": "[0.1, 0.1, 0.1]"})
    with pytest.raises(RunError, match="began with other weights"):
        run_study(copied / "study.yaml", out=copied / "out", quiet=True)


@pytest.mark.parametrize(
    ("measure", "told"),
    [
        ("val/acuracy", "measure: a classification has no number 'acuracy'. Did you mean 'accuracy'? Known: accuracy, top5_accuracy, macro_f1, loss"),
        ("val/iou[disk]", "measure: a classification has no number 'iou[disk]'."),
        ("test/accuracy", "measure: 'test/accuracy' is of no split that is measured. There is val."),
        ("vall/accuracy", "measure: 'vall/accuracy' is of no split that is measured. Did you mean 'val'? There is val."),
    ],
)  # fmt: skip
def test_a_measure_that_no_run_can_have_is_refused_before_training(study_file: Path, measure: str, told: str) -> None:
    study_file.write_text(STUDY.replace("val/accuracy", measure))
    with pytest.raises(RecipeError) as caught:
        run_study(study_file, out=study_file.parent / "out", quiet=True)
    assert str(caught.value).startswith(f"{study_file}: {told}")
    assert not (study_file.parent / "out").exists()


def test_a_setting_without_the_measure_is_named(study_file: Path) -> None:
    study_file.write_text(STUDY.replace("train.batch_size: 25", "data: {source: scenes, train: 50, test: 24, image_size: 32}"))
    with pytest.raises(RecipeError, match=r"setting C: measure: 'val/accuracy' is of no split that is measured\. There is test\.$"):
        run_study(study_file, out=study_file.parent / "out", quiet=True)


def test_a_measure_that_no_finished_run_has_is_an_error(copied: Path) -> None:
    before = times(copied / "out")
    for measure, told in {
        "val/recall[crcle]": "measure: A, seed 1 has no 'val/recall[crcle]', and none of 4 finished runs. Did you mean 'val/recall[circle]'?",
        "val/acuracy": "measure: A, seed 1 has no 'val/acuracy', and none of 4 finished runs. Did you mean 'val/accuracy'?",
    }.items():
        (copied / "study.yaml").write_text(STUDY.replace("val/accuracy", measure))
        with pytest.raises(RunError) as caught:
            run_study(copied / "study.yaml", out=copied / "out", quiet=True)
        assert told in str(caught.value)
    shutil.rmtree(copied / "out" / "runs" / "C")
    shutil.rmtree(copied / "out" / "runs" / "A")
    (copied / "study.yaml").write_text(STUDY.replace("val/accuracy", "val/recall[crcle]"))
    with pytest.raises(RunError, match=r"A, seed 1 has no 'val/recall\[crcle\]'\. "):  # which is known once it is trained
        run_study(copied / "study.yaml", out=copied / "out", quiet=True)
    assert not (copied / "out" / "runs" / "C").exists()
    assert times(copied / "out")["shared/own/run.json"] == before["shared/own/run.json"]


def test_the_names_of_numbers_are_those_that_runs_have(small_run: Path) -> None:
    from pellucid.tasks import NUMBERS

    names = {m.name.partition("[")[0] + "[CLASS]" * ("[" in m.name) for m in Run(small_run).measurements.values()}
    assert names == set(NUMBERS["classification"])


def test_a_run_that_fails_is_named_and_the_others_go_on(small_recipe: str, tmp_path: Path, pellucid: Callable[..., tuple[int, str, str]]) -> None:
    text = "recipe: base.yaml\nshared: {own: {recipe: base.yaml, set: {data: {source: folder, train: none, image_size: 32}}}}\nsettings:\n"
    text += "  A: {set: {train.phases.0.optimizer.lr: 1e30}}\n  B:\n  C: {from: {model.weights: own}}\n"
    code, out, err = pellucid("study", written(tmp_path, small_recipe, text), "--out", tmp_path / "out", "--jobs", 2)
    assert code == 1
    told = err.splitlines()[-3:]
    assert sorted(line.split(":")[0] for line in told) == ["A, seed 1 failed", "C, seed 1 failed", "own failed"]
    assert "C, seed 1 failed: not trained, because own failed, on which it builds" in told
    assert next(line for line in told if line.startswith("A")).startswith("A, seed 1 failed: the loss")
    assert "none" in next(line for line in told if line.startswith("own"))
    assert [Run(tmp_path / "out" / "runs" / name / "seed-1").record.status for name in "AB"] == ["failed", "done"]
    assert "own failed before it had a run folder" in str(StudyFolder(tmp_path / "out").record.notes)
    assert "failed" in out


def test_what_is_learned_from_labels_is_a_backbone_with_its_normalisation(copied: Path, finished: Path) -> None:
    """A run that starts from a shared classification has its normalisation and not its classifier; a finished run of before gets the file."""
    from pellucid.models import read_weights

    shared, started = Run(copied / "out" / "shared" / "own"), Run(copied / "out" / "runs" / "C" / "seed-1")
    assert shared.data.normalize == "measured from the training set"
    assert (started.data.mean, started.data.std) == (shared.data.mean, shared.data.std)
    assert started.data.normalize == "stated in backbone.safetensors (the backbone of timm/test_vit, classification (supervised) on scenes)"
    head = set(read_weights(shared.final_weights)) - set(read_weights(shared.backbone_weights))
    assert sorted(head) == ["head.bias", "head.weight"]
    made, before = shared.backbone_weights.read_bytes(), times(copied / "out")
    shared.backbone_weights.unlink()
    assert run_study(copied / "study.yaml", out=copied / "out", quiet=True).failed == {}
    assert (shared.backbone_weights.read_bytes(), times(copied / "out")) == (made, before)
    assert times(finished / "out") == before


def test_seeds_stay_below_2_to_the_32(study_file: Path) -> None:
    study_file.write_text(STUDY.replace("seeds: [1, 2]", "seeds: 3"))
    (study_file.parent / "base.yaml").write_text((study_file.parent / "base.yaml").read_text() + "seed: 4294967294\n")
    with pytest.raises(
        RecipeError, match=r"study.yaml:2:1: seeds: 3 from the recipe's own, 4294967294, go up to 4294967296; a seed lies below 2\^32. Give a list"
    ):
        load_study(study_file, folder=study_file.parent)


def test_models_that_nobody_knows_are_told_before_training(study_file: Path) -> None:
    study_file.write_text(STUDY.replace("train.batch_size: 25", "model.name: timm/test_vitt"))
    with pytest.raises(RecipeError, match="setting C: .*Did you mean 'test_vit'?"):
        run_study(study_file, out=study_file.parent / "out", quiet=True)
    assert not (study_file.parent / "out").exists()


def test_a_folder_of_something_else_is_refused(study_file: Path, finished: Path) -> None:
    shutil.copy(study_file, study_file.with_name("other.yaml"))
    for out, told in {
        study_file: "expected a folder for the study, there is a file of that name",
        study_file.parent: "the folder is not empty and holds no study. Choose another with --out.",
    }.items():
        with pytest.raises(RunError, match=told):
            run_study(study_file, out=out, quiet=True)
    with pytest.raises(RunError, match="holds the study 'study', not 'other'. Choose another folder with --out."):
        run_study(study_file.with_name("other.yaml"), out=finished / "out", quiet=True)


def test_a_folder_that_a_killed_study_left_is_taken(copied: Path) -> None:
    before, out = times(copied / "out"), copied / "out"
    assert not list(out.glob(".study*"))
    for file in out.iterdir():
        if file.is_file() and file.name != "study.yaml":
            file.unlink()
    shutil.rmtree(out / "figures")
    (out / ".study.json.77").write_text("{")
    assert run_study(copied / "study.yaml", out=out, quiet=True).failed == {}
    assert times(out) == before
    (out / "study.json").unlink()
    (out / "runs" / "mine" / "seed-1").mkdir(parents=True)
    with pytest.raises(RunError, match="the folder is not empty and holds no study"):
        run_study(copied / "study.yaml", out=out, quiet=True)


def test_a_text_that_is_not_the_study_s_is_no_study(study_file: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "study.yaml").write_text("recipe: mine.yaml\n")
    with pytest.raises(RunError, match="the folder is not empty and holds no study"):
        run_study(study_file, out=tmp_path / "out", quiet=True)


def test_two_studies_at_once_into_one_folder_are_refused(copied: Path) -> None:
    import fcntl

    with (copied / "out" / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="another process is at this study. Wait for it, or choose another folder with --out."):
            run_study(copied / "study.yaml", out=copied / "out", quiet=True)


def test_more_threads_than_cores_are_told(study_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pellucid.runtime.num_cores", lambda: 4)
    monkeypatch.setattr("pellucid.study.train_here", lambda jobs, **_: closed())
    for threads, at_once, told in ((2, 2, False), (2, 3, True), (1, 4, False), ("null", 2, True)):
        with pytest.raises(InterruptedError):
            run_study(study_file, out=study_file.parent / "out", at_once=at_once, overrides=[f"train.threads={threads}"])
        line = f"{at_once} runs at once with {4 if threads == 'null' else threads} threads each are more than the 4 cores; -s train.threads={4 // at_once} fits"
        assert (line in capsys.readouterr().err) == told


def test_the_option_that_sets_the_threads_of_a_shared_run_names_it(
    small_recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pellucid.runtime.num_cores", lambda: 4)
    monkeypatch.setattr("pellucid.study.train_here", lambda jobs, **_: closed())
    file = written(tmp_path, small_recipe.replace("threads: 1", "threads: 3"), STUDY)
    with pytest.raises(InterruptedError):
        run_study(file, out=tmp_path / "out", at_once=2, overrides=["own:train.evaluate_every=2"])
    assert "than the 4 cores; -s own:train.threads=2 -s train.threads=2 fits" in capsys.readouterr().err
    assert StudyFolder(tmp_path / "out").record.notes == ["-s own:train.evaluate_every=2: laid over own"]


# ── interruption ──────────────────────────────────────────────────────────────────────────────────────────────

LONG = "recipe: base.yaml\nshared: {own: {recipe: base.yaml, set: {train.phases.0.epochs: 30}}}\nsettings: {A: {from: {model.weights: own}}, B: }\n"


def when_trained(run: Path, act: Callable[[], object], epochs: int = 3) -> threading.Thread:
    """A thread that acts as soon as a run has ended so many epochs."""

    def wait() -> None:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            if (run / "metrics.jsonl").is_file() and sum(line["kind"] == "train" for line in Run(run).metrics()) >= epochs:
                act()
                return
            time.sleep(0.01)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def child_of(name: str) -> multiprocessing.process.BaseProcess:
    """The process that trains a run."""
    return next(child for child in multiprocessing.active_children() if child.name == name)


def test_a_signal_ends_the_study_after_checkpoints_and_the_same_command_goes_on(small_recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path, small_recipe, LONG)
    first = tmp_path / "out" / "shared" / "own"
    thread = when_trained(first, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(InterruptedError, match="interrupted with 0 of 3 runs finished; those that had begun wrote a checkpoint. The same command goes on."):
        run_study(file, out=tmp_path / "out")
    thread.join()
    assert "failed" not in capsys.readouterr().err + (tmp_path / "out" / "study.json").read_text() + (tmp_path / "out" / "table.txt").read_text()
    assert Run(first).record.status == "interrupted"
    assert 0 < Run(first).record.epoch < 30
    assert not list((tmp_path / "out").rglob(".lock"))
    thread = when_trained(first, lambda: child_of("own").terminate(), Run(first).record.epoch + 3)
    with pytest.raises(InterruptedError, match="interrupted with 1 of 3 runs finished"):
        run_study(file, out=tmp_path / "out")  # own alone is stopped: B goes on, and A, which builds on own, has not failed
    thread.join()
    assert "failed" not in capsys.readouterr().err + (tmp_path / "out" / "study.json").read_text() + (tmp_path / "out" / "table.txt").read_text()
    thread = when_trained(first, lambda: child_of("own").kill(), Run(first).record.epoch + 3)
    killed = run_study(file, out=tmp_path / "out")  # own goes on, and is killed
    thread.join()
    told = capsys.readouterr().err
    assert "3 runs: 1 finished, 1 to go on with, 1 to train" in told
    assert "own failed: its process was killed by SIGKILL" in told
    assert list(killed.failed) == ["own", "A, seed 1"]
    assert Run(tmp_path / "out" / "runs" / "B" / "seed-1").record.status == "done"
    whole = run_study(file, out=tmp_path / "out", quiet=True)
    assert whole.failed == {}
    from pellucid.train import train

    unbroken = train(first / "recipe.yaml", out=tmp_path / "unbroken", quiet=True, figures=False)
    assert file_hash(unbroken.final_weights) == file_hash(Run(first).final_weights)


def test_a_process_is_asked_to_end_once() -> None:
    """A second signal would reach it after its checkpoint, when nothing catches it any more, and its run would stay "running"."""

    class Process:
        pid, asked = 7, 0

        def terminate(self) -> None:
            self.asked += 1

    process, asked = Process(), set[int]()
    for _ in range(3):
        _end([process], asked)
    assert process.asked == 1


@pytest.mark.proof
def test_kill_9_of_the_study_leaves_no_orphan_and_loses_nothing(small_recipe: str, tmp_path: Path) -> None:
    file = written(tmp_path, small_recipe, LONG)
    first = tmp_path / "out" / "shared" / "own"
    study = subprocess.Popen([sys.executable, "-m", "pellucid", "study", str(file), "--out", str(tmp_path / "out"), "-q"])
    when_trained(first, study.kill).join()
    assert study.wait() == -signal.SIGKILL
    result = run_study(file, out=tmp_path / "out", quiet=True)  # waits for the orphan, which writes its checkpoint and ends
    assert result.failed == {}
    subprocess.run(
        [sys.executable, "-m", "pellucid", "train", str(first / "recipe.yaml"), "--out", str(tmp_path / "unbroken"), "-q"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    assert file_hash(Run(tmp_path / "unbroken").final_weights) == file_hash(Run(first).final_weights)


@pytest.mark.proof
def test_a_forked_process_with_two_threads_has_the_bits_of_a_fresh_one(small_recipe: str, tmp_path: Path) -> None:
    file = written(
        tmp_path, small_recipe, "recipe: base.yaml\nseeds: 2\nsettings: {A: {set: {train.threads: 2, train.phases.0.epochs: 4, train.batch_size: 25}}}\n"
    )
    run_study(file, out=tmp_path / "out", quiet=True)
    for seed in (1, 2):
        run = Run(tmp_path / "out" / "runs" / "A" / f"seed-{seed}")
        assert run.environment["flush_denormal"]
        out = tmp_path / f"fresh-{seed}"
        subprocess.run(
            [sys.executable, "-m", "pellucid", "train", str(run.path / "recipe.yaml"), "--out", str(out), "-q"], check=True, stdout=subprocess.DEVNULL
        )
        assert file_hash(Run(out).final_weights) == file_hash(run.final_weights)
