"""Two thousand damaged inputs: each is a clear error that names the file, or is left out by name; nothing hangs, runs or lies.

Every input comes from a seed (`damaged.py`), and a failure says which: `make test` takes some, `make proof` all.
"""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from damaged import Damaged, damage, damaged_images, damaged_json, damaged_recipes, picture
from fabricate import make_run
from judged import counts, judged, malicious, refused
from pellucid import recipe as recipes
from pellucid.checkpoint import latest_checkpoint
from pellucid.compare import compare, to_html, to_text
from pellucid.data.images import decode, findings
from pellucid.data.sources import load_dataset
from pellucid.errors import DataError, InterruptedError, RunError
from pellucid.files import file_hash
from pellucid.plan import plan
from pellucid.recipe import DataSection
from pellucid.report import render
from pellucid.run import Run
from pellucid.verify import verify

REPOSITORY = Path(__file__).resolve().parent.parent


# ── images ────────────────────────────────────────────────────────────────────────────────────────────────────


@counts(150, 1000)
def test_a_damaged_image_is_a_picture_or_an_error_with_its_name(count: int, capfd: pytest.CaptureFixture[str]) -> None:
    fatal = 0
    for case in damaged_images("image", count):
        with judged(case):
            found = findings(case.data, case.name)
            bad = [finding for finding in found if finding.fatal]
            assert len(bad) <= 1
            if bad:
                fatal += 1
                with pytest.raises(DataError) as caught:
                    decode(case.data, case.name)
                assert str(caught.value).startswith(f"{case.name}: {bad[0].kind}: ")
            else:
                image = decode(case.data, case.name)
                assert image.mode == "RGB"
                assert min(image.size) > 0
                assert image.tobytes() == decode(case.data, case.name).tobytes()
    assert 0.2 * count < fatal < 0.95 * count, "the damage is neither nothing nor everything"


def sections(root: Path, on_bad: str) -> DataSection:
    return DataSection.model_validate({"source": "folder", "train": str(root), "on_bad": on_bad})


def test_readings_of_damage_do_not_depend_on_what_was_read_before() -> None:
    cases = list(damaged_images("image", 60))
    forward = {case.name: findings(case.data, case.name) for case in cases}
    assert {case.name: findings(case.data, case.name) for case in reversed(cases)} == forward


@counts(150, 1000)
def test_bad_images_are_refused_by_name_or_skipped_by_name_and_no_sample_changes(count: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Folders of fifteen damaged files among good ones: who is left keeps its own pixels and its own label."""
    cases = list(damaged_images("folder", count))
    for start in range(0, count, 15):
        group, root = cases[start : start + 15], tmp_path / f"train-{start}"
        whole = Damaged(f"folder of {group[0].seed}", "fifteen of them", root.name, b"")
        with judged(whole):
            expected = write_folder(root, group)
            bad = sorted(name for name, pixels in expected.items() if pixels is None)
            message = refused(lambda root=root: load_dataset(sections(root, "refuse"), seed=1), *bad, "no file at all")
            assert (message is not None) == bool(bad)
            assert all(f"train: {name}: " in str(message) for name in bad)
            dataset = load_dataset(sections(root, "skip"), seed=1)
            split = dataset.splits["train"]
            assert sorted(dataset.skipped) == [f"train/{name}" for name in bad]
            assert sorted(split.names) == sorted(set(expected) - set(bad))
            for i, name in enumerate(split.names):
                assert dataset.classes[split.labels[i]] == name.partition("/")[0]
                assert split.open(i).tobytes() == expected[name], name
        shutil.rmtree(root)


def write_folder(root: Path, group: Sequence[Damaged]) -> dict[str, bytes | None]:
    """{name: its pixels, None where it has none} of a folder of damaged and good files in three classes."""
    files: dict[str, tuple[bytes, bytes | None]] = {}
    for i, case in enumerate(group):
        bad = any(finding.fatal for finding in findings(case.data, case.name))
        files[f"class-{i % 3}/{case.name}"] = (case.data, None if bad else decode(case.data, case.name).tobytes())
    for i in range(6):
        buffer = io.BytesIO()
        picture(50 + i).save(buffer, "PNG")
        files[f"class-{i % 3}/good-{i}.png"] = (buffer.getvalue(), picture(50 + i).tobytes())
    for name, (data, _) in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return {name: pixels for name, (_, pixels) in files.items()}


@counts(60, 300)
def test_a_file_that_changes_between_check_and_use_is_never_used(count: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "train"
    write_folder(root, [])
    dataset = load_dataset(sections(root, "refuse"), seed=1)
    split = dataset.splits["train"]
    index = split.names.index("class-1/good-1.png")
    file = root / "class-1/good-1.png"
    good = file.read_bytes()
    for case in damaged_images("use", count):
        file.write_bytes(case.data)
        with judged(case):
            assert refused(lambda: split.open(index), str(file)) is not None
    shutil.copy(root / "class-2/good-2.png", file)
    with pytest.raises(DataError, match="good-1.png: the file changed after it was checked"):
        split.open(index)
    file.unlink()
    with pytest.raises(DataError, match=r"good-1.png: cannot be read any more"):
        split.open(index)
    file.write_bytes(good)
    assert split.open(index).tobytes() == picture(51).tobytes()


# ── recipes ───────────────────────────────────────────────────────────────────────────────────────────────────


def usable(recipe: recipes.Recipe) -> None:
    """What loads can also be planned, or is refused: a model that cannot be built, images that are not there."""
    drawn = recipe.data.source == "scenes"
    if drawn and all(isinstance(n, int) and n <= 10_000 for n in (recipe.data.train, recipe.data.val or 1)) and max(recipe.data.size) <= 256:
        refused(lambda: plan(recipe, timing=False), "")


@counts(130, 600)
def test_a_damaged_recipe_is_a_recipe_or_problems_with_its_name(count: int, small_recipe: str, tmp_path: Path) -> None:
    """What loads can be written out and read back equal: nothing is let in that a run folder cannot hold."""
    shipped = sorted((REPOSITORY / "recipes").glob("*.yaml"))
    for file in shipped:
        shutil.copy(file, tmp_path)
    (tmp_path / "other.yaml").write_text(small_recipe)
    (tmp_path / "r.yaml").write_text("extends: r.yaml\n" + small_recipe)
    good = [small_recipe, *[file.read_text() for file in shipped]]
    loaded = 0
    for case in damaged_recipes("recipe", count, good):
        file = tmp_path / case.name
        file.write_bytes(case.data)
        found: list[recipes.Recipe] = []
        with judged(case):
            if refused(lambda file=file, found=found: found.append(recipes.load(file)), str(file), str(tmp_path / "r.yaml")) is None:
                loaded += 1
                recipes.save(found[0], tmp_path / "back.yaml")
                assert recipes.load(tmp_path / "back.yaml") == found[0]
                usable(found[0])
        file.unlink()
    assert 0 < loaded < count / 2
    assert not list(tmp_path.rglob("executed"))
    assert not Path("executed").exists()


# ── checkpoints ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def interrupted(small_recipe: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints of a run that was stopped at step 3 and, resumed, at step 6; read only."""
    from pellucid.tasks.classification import Classification
    from pellucid.train import resume, train

    folder = tmp_path_factory.mktemp("interrupted")
    (folder / "r.yaml").write_text(small_recipe.replace("train:\n  batch_size", "train:\n  ema: {decay: 0.9}\n  batch_size"))
    real, calls = Classification.loss, []

    def loss(self: Classification, *arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Classification, "loss", loss)
        for start in (
            lambda: train(folder / "r.yaml", out=folder / "run", quiet=True, figures=False),
            lambda: resume(folder / "run", quiet=True, figures=False),
        ):
            calls.clear()
            with pytest.raises(InterruptedError):
                start()
    found, _ = latest_checkpoint(folder / "run" / "checkpoints")
    assert found is not None
    assert len(list((folder / "run" / "checkpoints").glob("step-*"))) == 2
    return folder / "run"


def rehash(path: Path) -> None:
    """A manifest that fits the files, as somebody who changed them would write it."""
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"] = {name: file_hash(path / name) for name in manifest["files"] if (path / name).is_file()}
    (path / "manifest.json").write_text(json.dumps(manifest))


def damaged_checkpoint(path: Path, older: Path, rng: random.Random) -> tuple[str, bytes]:
    """Damage one file of a checkpoint in place; what was done, and the bytes that it has now."""
    file = rng.choice(sorted(path.iterdir()))
    how = rng.choice(("bytes", "bytes", "bytes", "gone", "a folder", "of the older", "swapped", "JSON", "JSON"))
    if how == "gone":
        file.unlink()
    elif how == "a folder":
        file.unlink()
        file.mkdir()
    elif how == "of the older":
        shutil.copy(older / file.name, file)
    elif how == "swapped":
        other = rng.choice([name for name in sorted(path.iterdir()) if name != file])
        shutil.copy(other, file)
    elif how == "JSON":
        file = path / "manifest.json"
        how, text = damaged_json(file.read_text(), rng)
        file.write_text(text)
    else:
        how, data = damage(file.read_bytes(), rng, [name.read_bytes() for name in sorted(older.iterdir())])
        file.write_bytes(data)
    return f"{file.name}: {how}", file.read_bytes() if file.is_file() else b""


@counts(60, 150)
def test_a_damaged_checkpoint_is_passed_over_by_name(count: int, interrupted: Path, tmp_path: Path) -> None:
    original = interrupted / "checkpoints"
    newest, _ = latest_checkpoint(original)
    assert newest is not None
    older = next(path for path in original.glob("step-*") if path.name != newest.path.name)
    before = {path.relative_to(original): path.read_bytes() for path in newest.path.iterdir()}
    for i in range(count):
        folder = Path(shutil.copytree(original, tmp_path / f"c{i}"))
        path = folder / newest.path.name
        how, data = damaged_checkpoint(path, older, random.Random(f"checkpoint-{i}"))
        with judged(Damaged(f"checkpoint-{i}", how, path.name, data)):
            if before == {file.relative_to(folder): file.read_bytes() for file in path.iterdir() if file.is_file()}:
                continue  # a damage that changed nothing
            found, passed = latest_checkpoint(folder)
            assert found is not None
            if found.path == path:  # allowed where nothing that counts differs: a manifest that says the same in other words
                assert how.startswith("manifest.json")
                assert found.step == newest.step
                assert passed == []
                same = all(torch.equal(tensor, newest.model[name]) for name, tensor in found.model.items())
                assert same
                assert found.model.keys() == newest.model.keys()
                assert found.average is not None
            else:
                assert found.path.name == older.name
                assert len(passed) == 1
                assert str(path) in passed[0]
            shutil.rmtree(folder / older.name)
            if found.path != path:
                nothing, passed = latest_checkpoint(folder)
                assert nothing is None
                assert len(passed) == 1
        shutil.rmtree(folder)


@counts(16, 48)
def test_a_damaged_checkpoint_with_a_fitting_manifest_is_passed_over_or_loads(count: int, interrupted: Path, tmp_path: Path) -> None:
    """Hashes that fit prove nothing when somebody wrote them anew: the readers behind them must hold as well."""
    newest = latest_checkpoint(interrupted / "checkpoints")[0]
    assert newest is not None
    for i in range(count):
        folder = Path(shutil.copytree(interrupted / "checkpoints", tmp_path / f"c{i}"))
        path, rng = folder / newest.path.name, random.Random(f"fitting-{i}")
        file = rng.choice([file for file in sorted(path.iterdir()) if file.name != "manifest.json"])
        how, data = damage(file.read_bytes(), rng, [newest.path.joinpath("model.safetensors").read_bytes()])
        file.write_bytes(data)
        rehash(path)
        with judged(Damaged(f"fitting-{i}", f"{file.name}: {how}", path.name, data)):
            found, passed = latest_checkpoint(folder)
            assert found is not None
            assert found.path == path or (len(passed) == 1 and str(path) in passed[0])
        shutil.rmtree(folder)


@pytest.mark.parametrize("which", range(4))
def test_a_checkpoint_that_would_run_code_is_passed_over(which: int, interrupted: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(interrupted / "checkpoints", tmp_path / "checkpoints"))
    path = sorted(folder.glob("step-*"))[-1]
    torch.save({"optimizer": malicious(tmp_path / "executed")[which]}, path / "state.pt")
    rehash(path)
    found, passed = latest_checkpoint(folder)
    assert found is not None
    assert found.path != path
    assert str(path) in passed[0]
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "text",
    [
        '{"step": 1e999, "files": {}}',
        '{"step": "6", "files": {}}',
        "[" * 100_000,
        '{"files": {}}',
        '{"step": %d, "files": {}}',
        '{"step": 7, "files": %s}',
        "",
        '"\\ud800"',
    ],
)
def test_a_manifest_that_names_too_little_or_another_step_is_no_manifest(text: str, interrupted: Path, tmp_path: Path) -> None:
    """The hashes of no file and the step of another checkpoint would let anything in."""
    folder = Path(shutil.copytree(interrupted / "checkpoints", tmp_path / "checkpoints"))
    path = sorted(folder.glob("step-*"))[-1]
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(text.replace("%d", str(manifest["step"])).replace("%s", json.dumps(manifest["files"])))
    with judged(Damaged("by hand", text[:40], path.name, text.encode())):
        found, passed = latest_checkpoint(folder)
        assert found is not None
        assert found.path != path
        assert len(passed) == 1
        assert str(path) in passed[0]


# ── run folders ───────────────────────────────────────────────────────────────────────────────────────────────


def damaged_file(name: str, data: bytes, rng: random.Random, others: Sequence[bytes]) -> tuple[str, bytes]:
    """JSON is changed within its grammar as often as beside it."""
    if name.endswith(".json") and rng.random() < 0.6:
        how, text = damaged_json(data.decode(), rng)
        return how, text.encode()
    if name.endswith(".jsonl") and rng.random() < 0.6:
        lines = data.decode().splitlines()
        at = rng.randrange(len(lines))
        how, lines[at] = damaged_json(lines[at], rng)
        return f"line {at + 1}: {how}", "\n".join(lines).encode()
    return damage(data, rng, others)


def read_all(path: Path) -> None:
    run = Run(path)
    repr((run.record, run.data, run.environment, run.recipe, run.metrics(), run.samples("val"), run.predictions("val")))


@counts(40, 250)
def test_a_damaged_run_folder_is_read_or_refused_by_name(count: int, tmp_path: Path) -> None:
    path = make_run(tmp_path / "run", n=20, seed=1).path
    other = make_run(tmp_path / "other", n=20, seed=2)
    (path / "verify.json").write_text(json.dumps({"result": "verified", "class": "bit-equal", "when": "2026-11-20", "tolerance": 0.005, "lines": ["ok a"]}))
    names = ["run.json", "data.json", "metrics.jsonl", "predictions/val.npz", "samples/val.csv", "environment.json", "resolved.yaml", "verify.json"]
    good = {name: (path / name).read_bytes() for name in names}
    for i in range(count):
        name, rng = names[i % len(names)], random.Random(f"run-{i}")
        how, data = damaged_file(name, good[name], rng, list(good.values()))
        (path / name).write_bytes(data)
        with judged(Damaged(f"run-{i}", how, name, data)):
            refused(lambda: read_all(path), str(path / name))
            refused(lambda: render(Run(path)), str(path / name))
            compared = lambda: compare([Run(path), other])  # noqa: E731
            refused(lambda c=compared: [write(c()) for write in (to_text, to_html)], str(path / name))
        (path / name).write_bytes(good[name])


@counts(14, 90)
def test_verify_calls_every_damage_to_a_finished_run_a_mismatch(count: int, copied_run: Path) -> None:
    """Or it is an error that names the file; no changed file is verified."""
    names = [
        "run.json",
        "data.json",
        "metrics.jsonl",
        "predictions/val.npz",
        "samples/val.csv",
        "environment.json",
        "resolved.yaml",
        "checkpoints/final.safetensors",
        "recipe.yaml",
    ]
    good = {name: (copied_run / name).read_bytes() for name in names}
    for i in range(count):
        name, rng = names[i % len(names)], random.Random(f"verify-{i}")
        how, data = damaged_file(name, good[name], rng, list(good.values()))
        (copied_run / name).write_bytes(data)
        with judged(Damaged(f"verify-{i}", how, name, data)):
            found: list[Any] = []
            message = refused(lambda found=found: found.append(verify(Run(copied_run))), str(copied_run / name))
            if message is None and data != good[name] and name != "run.json":  # run.json holds the hashes and has none itself
                assert not found[0].ok
                assert any(name in line or Path(name).name in line for line in found[0].lines() if line.startswith("MISMATCH"))
        (copied_run / name).write_bytes(good[name])


def test_predictions_that_would_run_code_are_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", n=6)
    good = run.predictions("val")
    file = run.predictions_file("val")
    for which in range(4):
        for array in ("name", "label", "logits"):
            arrays: dict[str, Any] = {"name": np.array(good.files), "label": good.labels, "logits": good.logits}
            arrays[array] = np.array([malicious(tmp_path / "executed")[which]] * 6, dtype=object)
            np.savez(file, **arrays)
            with pytest.raises(RunError, match=r"val\.npz: cannot be read as predictions: Object arrays cannot be loaded"):
                run.predictions("val")
    assert not (tmp_path / "executed").exists()
    np.load(file, allow_pickle=True)["logits"]
    assert (tmp_path / "executed").exists(), "the file would have done it"


@pytest.mark.parametrize(
    "arrays",
    [
        {"label": np.array([0, 1, 9])}, {"label": np.array([0, 1, -1])}, {"label": np.array([0.0, 1.0, 2.0])}, {"label": np.array(3)}, {"logits": np.zeros((3, 0), np.float32)},
        {"logits": np.zeros(3, np.float32)}, {"logits": np.zeros((2, 3), np.float32)}, {"logits": np.zeros((3, 3), complex)}, {"name": np.arange(3)}, {"name": np.array(["a"])},
    ],
)  # fmt: skip
def test_predictions_that_do_not_fit_together_are_refused(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", n=6)
    whole = {"name": np.array(["a", "b", "c"]), "label": np.array([0, 1, 2]), "logits": np.eye(3, dtype=np.float32)}
    np.savez(run.predictions_file("val"), **(whole | arrays))
    with pytest.raises(RunError, match=r"val\.npz: .* file was changed"):
        run.predictions("val")


def test_predictions_of_absurd_shape_take_no_memory(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", n=6)
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": (10**13, 3)})
    with zipfile.ZipFile(run.predictions_file("val"), "w") as archive:
        for name in ("name", "label", "logits"):
            archive.writestr(f"{name}.npy", buffer.getvalue())
    with judged(Damaged("by hand", "shape", "val.npz", buffer.getvalue())), pytest.raises(RunError, match=r"val\.npz: cannot be read"):
        run.predictions("val")


# ── the command line ──────────────────────────────────────────────────────────────────────────────────────────


def test_damage_on_the_command_line_is_exit_2_and_a_name(
    pellucid: Callable[..., tuple[int, str, str]], small_recipe: str, interrupted: Path, copied_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "photographs"
    write_folder(root, [case for case in damaged_images("command", 20) if case.data == b""][:1])
    (tmp_path / "folder.yaml").write_text(small_recipe.replace("source: scenes, train: 50, val: 24", "source: folder, train: photographs, val: 0.5"))
    (tmp_path / "laughs.yaml").write_bytes(next(case.data for case in damaged_recipes("x", 1, [small_recipe]) if case.how == "laughs"))
    torch.save({"x": malicious(tmp_path / "executed")[0]}, tmp_path / "evil.pth")
    (tmp_path / "evil.yaml").write_text(small_recipe.replace("model: {", "model: {weights: evil.pth, "))
    run = Path(shutil.copytree(interrupted, tmp_path / "stopped"))
    for path in run.glob("checkpoints/step-*"):
        (path / "state.pt").write_bytes(b"")
    (copied_run / "run.json").write_text("{")
    wanted = [
        (("data", "check", "folder.yaml"), 2, "hand0.png"),
        (("train", "folder.yaml"), 2, "hand0.png"),
        (("validate", "laughs.yaml"), 2, "laughs.yaml"),
        (("train", "evil.yaml"), 2, "evil.pth"),
        (("verify", copied_run), 2, "run.json"),
        (("resume", run), 0, "step-"),  # all of its checkpoints are damaged: it begins anew, and says so
    ]
    for arguments, wanted_code, name in wanted:
        code, out, err = pellucid(*arguments)
        assert code == wanted_code, (arguments, err)
        assert name in out + err, (arguments, out, err)
        assert "Traceback" not in out + err
        assert "internal error" not in err
    assert not (tmp_path / "executed").exists()
    # One in a process of its own, as a user starts it.
    done = subprocess.run([sys.executable, "-m", "pellucid", "validate", "laughs.yaml"], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("laughs.yaml:")
    assert "Traceback" not in done.stderr
