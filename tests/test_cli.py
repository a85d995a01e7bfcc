"""The command line: exit codes, what goes to which stream, one JSON object, no torch where none is needed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest
from PIL import Image

from drawn_folders import RECIPE, draw_data
from pellucid.cli import app
from pellucid.files import file_hash
from pellucid.run import Run

Command = Callable[..., tuple[int, str, str]]

COMMANDS = [
    "demo", "train", "resume", "study", "plan", "validate", "verify", "evaluate", "predict", "inside", "export", "report", "compare", "data check", "recipes ls", "recipes cp",
    "recipes schema", "doctor", "figure", "explore",
]  # fmt: skip
OF_MASKS = """\
task: segmentation
data: {source: scenes, train: 8, val: 4, image_size: 32}
model: {name: smp/Unet, encoder: tu-test_resnet}
train: {batch_size: 4, phases: [{epochs: 1, optimizer: {name: adamw, lr: 1e-3}}]}
"""
PROGRAM = [sys.executable, "-m", "pellucid.cli"]

# A finder that refuses torch and what stands on it: what is imported in spite of it needs none.
WITHOUT_TORCH = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "timm", "torchmetrics"):
            raise ImportError(f"{name} is not for this command")
sys.meta_path.insert(0, Refuse())
from pellucid.cli import main
"""


@pytest.fixture
def recipe_file(small_recipe: str, tmp_path: Path) -> Path:
    file = tmp_path / "small.yaml"
    file.write_text(small_recipe)
    return file


def only_json(out: str) -> dict:
    """The one object of a --json answer."""
    assert out.count("\n") == 1
    assert out.endswith("\n")
    found = json.loads(out)
    assert isinstance(found, dict)
    return found


# ── help ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_help_answers_within_half_a_second() -> None:
    times = []
    for _ in range(5):
        began = time.perf_counter()
        subprocess.run([*PROGRAM, "--help"], check=True, capture_output=True)
        times.append(time.perf_counter() - began)
        if times[-1] < 0.5:
            break
    assert min(times) < 0.5, times


def test_help_imports_nothing_heavy() -> None:
    script = "import sys; from pellucid.cli import main; main(['--help']); print(*{name.split('.')[0] for name in sys.modules}, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert {"torch", "numpy", "timm", "matplotlib", "sklearn", "pydantic"}.isdisjoint(done.stderr.split())
    assert "pellucid" in done.stderr.split()


def test_every_command_of_the_design_is_there_and_helps(pellucid: Command) -> None:
    code, out, _ = pellucid("--help")
    assert code == 0
    for command in COMMANDS:
        assert command.split()[0] in out
        code, text, err = pellucid(*command.split(), "--help")
        assert (code, err) == (0, ""), command
        assert f"Usage: pellucid {command} [OPTIONS]" in text


def test_the_list_of_commands_here_is_whole() -> None:
    groups = {group.name: group.typer_instance for group in app.registered_groups}
    names = [c.name or c.callback.__name__ for c in app.registered_commands]
    names += [f"{group} {c.name or c.callback.__name__}" for group, sub in groups.items() for c in sub.registered_commands]
    assert sorted(names) == sorted(COMMANDS)


def test_version_is_the_packages(pellucid: Command) -> None:
    import pellucid as package

    assert pellucid("--version") == (0, f"{package.__version__}\n", "")


# ── exit codes ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "a.yaml", "--fast"], "No such option: --fast"),
        (["tran"], "No such command 'tran'"),
        (["train"], "Missing argument 'RECIPE'"),
        (["train", "a.yaml", "--seeds", "0"], "--seeds"),
        (["verify", "a", "--tolerance", "-1"], "--tolerance"),
        (["evaluate", "a"], "a: expected a run folder"),
        (["evaluate", "a", "--split", "test"], "--split names a split of the recipe that --masks are scored against"),
        (["recipes", "cp", "dmo"], "there is no recipe 'dmo'. Did you mean 'demo'?"),
    ],
)
def test_a_wrong_command_line_is_exit_2_on_stderr(pellucid: Command, arguments: list[str], message: str) -> None:
    code, out, err = pellucid(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


def test_a_recipe_error_is_exit_2_with_its_place(pellucid: Command, recipe_file: Path) -> None:
    recipe_file.write_text(recipe_file.read_text().replace("batch_size", "bach_size"))
    for command in ("train", "plan", "validate"):
        code, out, err = pellucid(command, recipe_file)
        assert (code, out) == (2, "")
        assert f"{recipe_file}:6:3: unknown key 'bach_size' in train. Did you mean 'batch_size'?" in err
        assert "Traceback" not in err
    code, _, err = pellucid("data", "check", recipe_file)
    assert (code, f"{recipe_file}:6:3" in err) == (2, True)


def test_a_wrong_override_is_exit_2_and_named(pellucid: Command, recipe_file: Path) -> None:
    code, _, err = pellucid("validate", recipe_file, "-s", "train.batch_size=many")
    assert code == 2
    assert "-s train.batch_size=many: train.batch_size: expected a whole number; got 'many' (text)" in err


def test_what_is_not_there_is_exit_4(pellucid: Command, tmp_path: Path, small_run: Path) -> None:
    code, out, err = pellucid("train", tmp_path / "none.yaml")
    assert (code, out) == (4, "")
    assert "none.yaml: no such recipe. `pellucid recipes ls` shows those that come with Pellucid." in err
    code, _, err = pellucid("predict", small_run, tmp_path / "none.png")
    assert (code, err) == (4, f"{tmp_path / 'none.png'}: no such image or folder\n")


@pytest.mark.parametrize("command", ["resume", "verify", "report", "export", "compare"])
def test_a_folder_that_is_no_run_is_exit_2(pellucid: Command, tmp_path: Path, command: str) -> None:
    code, out, err = pellucid(command, tmp_path)
    assert (code, out) == (2, "")
    assert str(tmp_path) in err
    assert "Traceback" not in err


def test_debug_shows_where_an_error_came_from(pellucid: Command, tmp_path: Path) -> None:
    from pellucid.errors import MissingError

    with pytest.raises(MissingError):
        pellucid("--debug", "validate", tmp_path / "none.yaml")


def test_an_error_of_ours_is_exit_1_and_asks_for_a_report(pellucid: Command, small_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("seven")

    monkeypatch.setattr("pellucid.report.write_report", broken)
    code, out, err = pellucid("report", small_run)
    assert (code, out) == (1, "")
    assert err == "pellucid: internal error: ZeroDivisionError: seven\nThe same command with --debug shows where. Please report it.\n"
    with pytest.raises(ZeroDivisionError):
        pellucid("report", small_run, "--debug")


def test_bad_images_are_exit_2_unless_skipped(pellucid: Command, tmp_path: Path) -> None:
    data = draw_data(tmp_path / "data", "prefix")
    (data / "train" / "star_50.jpg").write_bytes(b"")
    recipe = tmp_path / "r.yaml"
    recipe.write_text(RECIPE.format(source="prefix", train="data/train", val="data/val"))
    code, out, err = pellucid("data", "check", recipe)
    assert code == 2
    assert "BAD  zero_size train/star_50.jpg" in out
    assert "training would refuse to start: 1 bad images. Repair or remove them, or set data.on_bad: skip" in err
    code, out, err = pellucid("train", recipe, "--out", tmp_path / "run")
    assert (code, out) == (2, "")
    assert "star_50.jpg" in err
    assert not (tmp_path / "run").exists()
    code, out, err = pellucid("data", "check", recipe, "-s", "data.on_bad=skip", "--json")
    assert (code, err) == (0, "")
    found = only_json(out)
    assert [p["file"] for p in found["problems"] if p["fatal"]] == ["star_50.jpg"]
    assert found["splits"]["train"]["counts"] == [4, 4, 4]


# ── train ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_train_prints_numbers_and_the_run_folder_last(pellucid: Command, recipe_file: Path, tmp_path: Path) -> None:
    code, out, err = pellucid("train", recipe_file, "--out", tmp_path / "run", "-s", "train.phases.0.epochs=1")
    assert code == 0
    assert out.splitlines()[-1] == str(tmp_path / "run")
    assert re.search(r"^val/accuracy +0\.\d{4} ", out, re.MULTILINE)
    assert "epoch 1/1  train loss" in err
    assert "epoch 1/1" not in out
    assert "95 %" not in err
    run = Run(tmp_path / "run")
    assert run.record.command == ["pellucid", "train", str(recipe_file), "-s", "train.phases.0.epochs=1"]
    assert run.recipe.epochs == 1
    code, out, err = pellucid("train", recipe_file, "--out", tmp_path / "run")
    assert (code, out) == (2, "")
    assert "the folder is not empty" in err


def test_train_in_json_is_one_object_and_quiet_is_silent(pellucid: Command, recipe_file: Path, tmp_path: Path) -> None:
    code, out, err = pellucid("train", recipe_file, "--out", tmp_path / "run", "-s", "train.phases.0.epochs=1", "--json", "--quiet")
    assert (code, err) == (0, "")
    found = only_json(out)
    assert set(found) == {"run", "measurements"}
    assert found["run"] == str(tmp_path / "run")
    assert found["measurements"] == {key: m.value for key, m in Run(tmp_path / "run").measurements.items()}


def test_an_interrupt_is_exit_130_and_resume_gives_the_same_bits(pellucid: Command, recipe_file: Path, small_run: Path, tmp_path: Path) -> None:
    """Ctrl-C in a process of its own, in the middle of the second epoch."""
    script = """
import os, signal, sys
from pellucid.cli import main
import pellucid.loop as _
loop = sys.modules["pellucid.loop"]
after = loop._after_step
def interrupted(t, *rest):
    after(t, *rest)
    if t.at.step == 6:
        os.kill(os.getpid(), signal.SIGINT)
loop._after_step = interrupted
sys.exit(main(sys.argv[1:]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, "train", str(recipe_file), "--out", str(tmp_path / "run")], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (130, "")
    assert f"interrupted at step 6 of 8, checkpoint written. Continue with `pellucid resume {tmp_path / 'run'}`" in done.stderr
    assert "Traceback" not in done.stderr
    assert Run(tmp_path / "run").record.status == "interrupted"
    code, out, _ = pellucid("resume", tmp_path / "run")
    assert (code, out.splitlines()[-1]) == (0, str(tmp_path / "run"))
    assert file_hash(Run(tmp_path / "run").final_weights) == file_hash(Run(small_run).final_weights)
    code, _, err = pellucid("resume", tmp_path / "run")
    assert (code, "the run is finished; there is nothing to resume" in err) == (2, True)


# ── commands that answer something ────────────────────────────────────────────────────────────────────────────


def test_validate_names_the_nearest_model(pellucid: Command, recipe_file: Path) -> None:
    assert pellucid("validate", recipe_file) == (0, f"{recipe_file}: valid\n", "")
    code, out, err = pellucid("validate", recipe_file, "-s", "model.name=timm/resnet81")
    assert (code, out) == (2, "")
    assert "Did you mean" in err
    assert "resnet" in err.partition("Did you mean")[2]


def test_validate_names_the_nearest_segmenter_and_encoder(pellucid: Command, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(OF_MASKS)
    assert pellucid("validate", tmp_path / "r.yaml") == (0, f"{tmp_path / 'r.yaml'}: valid\n", "")
    code, _, err = pellucid("validate", tmp_path / "r.yaml", "-s", "model.name=smp/Umet")
    assert (code, "Did you mean 'smp/Unet'?" in err) == (2, True)
    code, _, err = pellucid("validate", tmp_path / "r.yaml", "-s", "model.encoder=resnet81")
    assert (code, "resnet" in err.partition("Did you mean")[2]) == (2, True)


def test_evaluate_without_data_says_what_to_give(pellucid: Command, small_run: Path) -> None:
    code, _, err = pellucid("evaluate", small_run)
    words = "give --data PATH (images for the run's model) or --masks DIR (masks that are predicted already)"
    assert (code, err) == (2, f"{small_run}: {words}\n")


def test_compare_shows_the_numbers_of_single_classes_when_asked(pellucid: Command, small_run: Path) -> None:
    code, out, _ = pellucid("compare", small_run, "--per-class")
    recall = Run(small_run).measurements["val/recall[circle]"]
    assert code == 0
    assert out.splitlines()[-3].split()[:2] == ["recall", "circle"]
    assert out.splitlines()[-1].split()[:2] == [small_run.name, str(recall)]
    assert "recall" not in pellucid("compare", small_run)[1]
    code, out, err = pellucid("compare", small_run, "--per-class", "--metric", "loss")
    assert (code, out, "--per-class: val/loss has no numbers of single classes here" in err) == (2, "", True)


def test_data_check_counts_the_pixels_of_masks(pellucid: Command, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(OF_MASKS)
    code, out, _ = pellucid("data", "check", tmp_path / "r.yaml", "-q")
    assert code == 0
    assert out.splitlines()[0].split("  ")[0] == "class"
    counts = only_json(pellucid("data", "check", tmp_path / "r.yaml", "-q", "--json")[1])["splits"]["val"]["pixels"]
    assert sum(counts) == 4 * 32 * 32
    assert re.search(rf"^background .* {counts[0]:,} +{100 * counts[0] / sum(counts):.2f}$", out, re.MULTILINE)
    assert re.search(r"^ignored +0 +0\.00 +0 +0\.00$", out, re.MULTILINE)


def test_data_check_shows_the_palette_to_paste_and_refuses_without_it(pellucid: Command, tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / "train").mkdir(exist_ok=True)
        Image.new("RGB", (8, 6), (90, 90, 40 * i)).save(tmp_path / "train" / f"{i}_sat.jpg")
        Image.new("RGB", (8, 6), (0, 255, 255) if i else (255, 0, 255)).save(tmp_path / "train" / f"{i}_mask.png")
    (tmp_path / "r.yaml").write_text(OF_MASKS.replace("{source: scenes, train: 8, val: 4, image_size: 32}", "{source: pairs, train: train}"))
    code, out, err = pellucid("data", "check", tmp_path / "r.yaml", "-q", "-s", "data.on_bad=skip")
    assert code == 2
    assert "class_1: [0, 255, 255]  # 96 pixels, 66.7 %" in out
    assert "1 findings, 0 bad images" in out
    assert err == "training would refuse to start: no_palette. What stands above says how to go on.\n"


def test_plan_prints_steps_and_every_resolved_value_and_writes_nothing(pellucid: Command, recipe_file: Path) -> None:
    before = set(recipe_file.parent.iterdir())
    code, out, err = pellucid("plan", recipe_file, "--no-timing")
    assert (code, err) == (0, "")
    assert re.search(r"steps +8 \(4 an epoch, batch 16\)", out)
    assert "not measured" in out
    assert "horizontal_flip: 0.5" in out
    assert "on_bad: refuse" in out
    assert set(recipe_file.parent.iterdir()) == before


def test_recipes_are_listed_copied_and_have_a_schema(pellucid: Command, tmp_path: Path) -> None:
    from pellucid import recipe as recipes

    names = only_json(pellucid("recipes", "ls", "--json")[1])["recipes"]
    assert "demo" in names
    assert all(line.startswith("pellucid ") for line in names.values()), "a recipe opens with its command"
    assert "demo" in pellucid("recipes", "ls")[1]
    schema = only_json(pellucid("recipes", "schema")[1])
    jsonschema.Draft202012Validator.check_schema(schema)
    for name in names:
        folder = tmp_path / name
        folder.mkdir()
        assert pellucid("recipes", "cp", name, folder) == (0, f"{folder / f'{name}.yaml'}\n", "")
        copied = recipes.load(folder / f"{name}.yaml")
        jsonschema.validate(json.loads(copied.model_dump_json()), schema)
    code, _, err = pellucid("recipes", "cp", "demo", tmp_path / "demo")
    assert (code, err) == (2, f"{tmp_path / 'demo' / 'demo.yaml'}: the file exists; choose another name\n")


def test_studies_are_listed_and_copied_with_their_recipes(pellucid: Command, tmp_path: Path) -> None:
    from pellucid.study_file import load_study

    studies = only_json(pellucid("recipes", "ls", "--json")[1])["studies"]
    assert "studies/flowers-transfer" in studies
    assert "studies/flowers-transfer" in pellucid("recipes", "ls")[1]
    for name in studies:
        assert pellucid("recipes", "cp", name, tmp_path) == (0, f"{tmp_path / name}.yaml\n", "")
        assert len(load_study(tmp_path / f"{name}.yaml", folder=tmp_path).settings) > 1
    assert pellucid("recipes", "cp", "studies/office-home", tmp_path)[0] == 2  # it is there
    code, _, err = pellucid("recipes", "cp", "studies/office-home", tmp_path / "none.yaml")
    assert (code, err) == (2, f"{tmp_path / 'none.yaml'}: expected a folder; a study is copied with its recipes, into studies/ and recipes/ of it\n")
    assert "Did you mean 'studies/office-home'?" in pellucid("recipes", "cp", "studies/ofice-home", tmp_path)[2]


def test_doctor_names_versions_and_what_is_lacking(pellucid: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in ("datasets", "onnx") else found(name, *rest))
    code, out, _ = pellucid("doctor")
    assert code == 0
    assert re.search(r"^ok +torch: \d", out, re.MULTILINE)
    assert "lack extra hub: not installed (datasets)  → pip install 'pellucid[hub]'" in out
    assert "extra export: not installed (onnx" in out
    assert {"pellucid", "python", "torch", "cpu", "cache"} <= set(only_json(pellucid("doctor", "--json")[1]))


@pytest.mark.parametrize(
    "arguments",
    [["verify", "{run}"], ["predict", "{run}", "{image}"], ["report", "{run}"], ["compare", "{run}"], ["plan", "{recipe}"], ["validate", "{recipe}"],
     ["data", "check", "{recipe}"], ["export", "{run}", "--format", "safetensors"]],
    ids=lambda arguments: " ".join(arguments[:1]),
)  # fmt: skip
def test_json_is_exactly_one_object_on_stdout(pellucid: Command, copied_run: Path, recipe_file: Path, tmp_path: Path, arguments: list[str]) -> None:
    Image.new("RGB", (40, 40), (200, 30, 30)).save(tmp_path / "red.png")
    filled = [a.format(run=copied_run, image=tmp_path / "red.png", recipe=recipe_file) for a in arguments]
    code, out, _ = pellucid(*filled, "--json")
    assert code == 0
    only_json(out)


def test_report_and_compare_need_no_torch(copied_run: Path, tmp_path: Path) -> None:
    script = f"{WITHOUT_TORCH}\nsys.exit(main(['report', sys.argv[1]]) or main(['compare', sys.argv[1], sys.argv[1], '--out', sys.argv[2]]))"
    done = subprocess.run([sys.executable, "-c", script, str(copied_run), str(tmp_path / "c.html")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0] == str(copied_run / "report.html")
    assert (tmp_path / "c.html").stat().st_size > 1000


def test_bad_input_is_told_before_torch_is_imported(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("task: classification\nmodle: 3\n")
    recipes = [[command, recipe] for command in ("train", "plan", "validate") for recipe in ("bad.yaml", "none.yaml")]
    commands = [*recipes, ["study", "none.yaml"], *([command, "none"] for command in ("resume", "verify", "evaluate", "export", "report", "figure", "explore"))]
    commands += [["predict", "none", "x.png"], ["inside", "none", "x.png"], ["export", "none", "--format", "pt"]]
    script = f"{WITHOUT_TORCH}\nimport json\nprint(json.dumps([main(command) for command in json.loads(sys.argv[1])]))"
    done = subprocess.run([sys.executable, "-c", script, json.dumps(commands)], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert "internal error" not in done.stderr, done.stderr
    codes = {" ".join(command): code for command, code in zip(commands, json.loads(done.stdout), strict=True)}
    assert codes == {name: 4 if "none.yaml" in name else 2 for name in codes}, done.stderr


def test_the_block_on_torch_in_these_tests_works(copied_run: Path) -> None:
    script = f"{WITHOUT_TORCH}\nsys.exit(main(['verify', sys.argv[1]]))"
    done = subprocess.run([sys.executable, "-c", script, str(copied_run)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "is not for this command" in done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_closed_pipe_ends_without_a_word(unbuffered: str) -> None:
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    child = subprocess.Popen([*PROGRAM, "recipes", "schema"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    assert child.stdout is not None
    assert child.stderr is not None
    child.stdout.close()
    assert child.stderr.read() == b""
    child.stderr.close()
    assert child.wait() in (0, 1)
