"""What views show of a run: verify names whatever was forged, left out or added, also when every hash and every note was made to fit."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from pellucid.data.sources import load_dataset
from pellucid.files import file_hash
from pellucid.records import write_arrays
from pellucid.run import Run
from pellucid.tasks import load_model, runtime_of
from pellucid.train import resume, train
from pellucid.verify import _curve_checks, verify
from pellucid.verify_inside import anew_checks, open_kept, stored_checks
from pellucid.verify_pictures import thumbnail_checks

INSIDE = "inside: {samples: 4, features: 6, epochs: [last], methods: [attention], projections: [], neighbours: 12}\n"
NEW = ("attention.json", "attention.npz", "neighbours.json", "neighbours.npz", "neighbours.webp")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, small_recipe: str) -> Run:
    """A run that keeps everything that views need; read only."""
    folder = tmp_path_factory.mktemp("kept")
    (folder / "r.yaml").write_text(small_recipe + INSIDE)
    return train(folder / "r.yaml", out=folder / "run", quiet=True, figures=False)


@pytest.fixture
def forged(kept: Run, tmp_path: Path) -> Run:
    return Run(shutil.copytree(kept.path, tmp_path / "forged"))


def cover(run: Run, *notes: str) -> None:
    """Make every hash fit the files that are there now, forget those that are gone, and add notes."""
    path = run.path / "run.json"
    record = json.loads(path.read_text())
    record["files"] = {name: file_hash(run.path / name) for name in record["files"] if (run.path / name).is_file()}
    record["notes"] += notes
    path.write_text(json.dumps(record))


def edit(path: Path, change: Callable[[dict], object]) -> None:
    """Change a record, or arrays."""
    if path.suffix == ".json":
        value = json.loads(path.read_text())
        change(value)
        path.write_text(json.dumps(value))
        return
    with np.load(path) as arrays:
        value = {key: arrays[key].copy() for key in arrays}
    change(value)
    write_arrays(path, value, compressed=True)


def mismatches(run: Run) -> str:
    """What verify says of the inside and the pictures of a run that does not hold."""
    dataset, runtime = load_dataset(run.recipe.data, seed=run.recipe.seed), runtime_of(run)
    found, lines = open_kept(run)
    assert found is not None
    lines += [*stored_checks(found), *anew_checks(found, dataset, runtime.place(load_model(run)), runtime), *thumbnail_checks(run, dataset)]
    return "\n".join(text for _, ok, text in lines if not ok)


def drop_class(run: Run) -> None:
    edit(run.inside / "attention.json", lambda f: f.update(class_token=False))
    edit(run.inside / "attention.npz", lambda a: [a.pop(key) for key in list(a) if key.startswith("class/")])


def one_picture(run: Run) -> None:
    edit(run.inside / "attention.json", lambda f: f.update(pictures=[0], notes=["attention of patches is kept of the first 1 of 4 pictures"]))
    edit(run.inside / "attention.npz", lambda a: [a.pop(key) for key in list(a) if key.split("/")[1] != "0"])


def one_layer(run: Run) -> None:
    edit(run.inside / "attention.json", lambda f: f.update(layers=f["layers"][:1], notes=["of 2 layers one layer is kept"]))
    edit(run.inside / "attention.npz", lambda a: [a.pop(key) for key in list(a) if key.endswith("/1")])


def no_neighbours(run: Run) -> None:
    edit(run.inside / "neighbours.json", lambda f: f["mistakes"].update(val=[]))
    edit(run.inside / "neighbours.npz", lambda a: a.update({"mistakes/val": a["mistakes/val"][:0]}))
    cover(run, "no picture of a mistake in the report: it was gone")


def no_bank(run: Run) -> None:
    for path in run.inside.glob("neighbours.*"):
        path.unlink()
    cover(run, "no training images are kept to compare with: memory ran out")


def no_attention(run: Run) -> None:
    for path in run.inside.glob("attention.*"):
        path.unlink()
    edit(run.inside / "findings.json", lambda f: f["notes"].append("no attention of patches is kept: memory ran out"))


def longer_atlas(run: Run) -> None:
    path = run.inside / "neighbours.webp"
    with PIL.Image.open(path) as old:
        new = PIL.Image.new("RGB", (old.width, old.height + 64), "red")
        new.paste(old, (0, 0))
    new.save(path, "WEBP", quality=80)


def other_pictures(run: Run) -> None:
    for path in (run.thumbnails / "val").glob("*.webp"):
        with PIL.Image.open(path) as old:
            size = old.size
        PIL.Image.new("RGB", size, "red").save(path)


def one_picture_less(run: Run) -> None:
    next((run.thumbnails / "val").glob("*.webp")).unlink()


def no_thumbnails(run: Run) -> None:
    shutil.rmtree(run.thumbnails)


FORGED: dict[Callable[[Run], None], str] = {
    drop_class: "MISMATCH inside attention of patches: class_token: False, expected True",
    one_picture: "MISMATCH inside attention of patches: pictures: [0], expected [0, 1, 2, 3]",
    one_layer: "MISMATCH inside attention of patches: layers: ",
    lambda run: edit(run.inside / "attention.json", lambda f: f.update(how="exact")): "inside attention of patches: how: exact, expected attention weights of",
    lambda run: edit(run.inside / "attention.json", lambda f: f.update(notes=["fair"])): "inside attention of patches: notes: ['fair'], expected []",
    lambda run: edit(run.inside / "neighbours.json", lambda f: f.update(how="all of them")): "inside neighbours: how 'all of them', expected 'cosine of",
    lambda run: edit(run.inside / "neighbours.json", lambda f: f.update(pellucid="9.9")): "inside neighbours: pellucid '9.9', expected '0.1.0'",
    no_neighbours: "MISMATCH inside neighbours of val: 0 of ",
    no_bank: "it holds no hash of inside/neighbours.json (no training images are kept to compare with: memory ran out)",
    no_attention: "MISMATCH inside attention of patches: the model has attention, and none was kept",
    longer_atlas: "MISMATCH inside pictures of neighbours: it is 768 x 128 pixels, expected 12 x 1 tiles of 64",
    other_pictures: "MISMATCH pictures of val: 0",
    one_picture_less: " mistakes, expected ",
    no_thumbnails: "MISMATCH pictures of val: 0 of ",
}


@pytest.mark.parametrize("forge", FORGED)
def test_what_was_forged_is_named_whatever_notes_and_hashes_say(forge: Callable[[Run], None], forged: Run) -> None:
    forge(forged)
    cover(forged)
    assert FORGED[forge] in mismatches(forged)


def test_two_lines_less_in_the_settings_switch_nothing_off(forged: Run) -> None:
    path = forged.path / "resolved.yaml"
    path.write_text("".join(line for line in path.read_text().splitlines(True) if line.strip().partition(":")[0] not in ("attention", "neighbours")))
    edit(forged.inside / "attention.npz", lambda a: a.update({"rows/0/0": a["rows/0/0"][::-1].copy()}))
    forged.probe_atlas.unlink()
    cover(forged)
    found = mismatches(forged)
    assert "MISMATCH inside attention of patches: picture 0, blocks.0.attn: a row differs by" in found
    assert "MISMATCH run.json: it holds no hash of snapshots/probe.webp" in found
    assert "MISMATCH inside neighbours: its rows are not those that the recipe asks for" in found, "2,000 where nothing is said"


def test_a_run_from_before_there_were_views_verifies_without_them(forged: Run) -> None:
    """No trace of them: neither setting, file nor hash; its pictures of mistakes are compared all the same."""
    path = forged.path / "resolved.yaml"
    path.write_text("".join(line for line in path.read_text().splitlines(True) if line.strip().partition(":")[0] not in ("attention", "neighbours")))
    for file in [forged.probe_atlas, *(forged.inside / name for name in NEW)]:
        file.unlink()
    record = json.loads((forged.path / "run.json").read_text())
    record["files"] = {name: value for name, value in record["files"].items() if not name.startswith("thumbnails/")}
    (forged.path / "run.json").write_text(json.dumps(record))
    cover(forged)
    assert mismatches(forged) == ""
    other_pictures(forged)
    assert "MISMATCH pictures of val: 0" in mismatches(forged)


def test_curves_that_do_not_end_at_the_numbers_are_named(forged: Run) -> None:
    def said() -> list[str]:
        return [check.line for check in _curve_checks(forged, forged.record.measurements, 0.005)]

    assert said() == ["ok metrics.jsonl: val accuracy, loss of epoch 2 are those that were measured"]
    path = forged.path / "metrics.jsonl"
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    last = max(i for i, line in enumerate(lines) if line["kind"] == "val")
    measured = lines[last]["accuracy"]
    lines[last]["accuracy"] = 1.0
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert said() == [f"MISMATCH metrics.jsonl: val accuracy is 1.0 at epoch 2, measured {measured:.6g}"]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines[:last]))
    assert said() == ["MISMATCH metrics.jsonl: no val line of epoch 2, whose weights are the final ones"]


# ── what training keeps ───────────────────────────────────────────────────────────────────────────────────────


def bits(run: Run) -> dict[str, str]:
    """The hash of each file that views show."""
    paths = [run.probe_atlas, *(run.inside / name for name in NEW), *run.thumbnail_files]
    return {str(path.relative_to(run.path)): file_hash(path) for path in paths}


def test_workers_do_not_change_what_views_show(kept: Run, small_recipe: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(small_recipe + INSIDE)
    assert kept.recipe.data.workers == 2
    assert bits(train(tmp_path / "r.yaml", overrides=["data.workers=0"], out=tmp_path / "run", quiet=True, figures=False)) == bits(kept)


@pytest.mark.proof
def test_two_processes_keep_what_one_keeps(small_recipe: str, tmp_path: Path) -> None:
    """With weights that do not move: sums over processes round otherwise, and then every number has other bits."""
    still = ["train.phases.0.optimizer.lr=1e-30", "train.phases.0.optimizer.weight_decay=0"]
    (tmp_path / "r.yaml").write_text(small_recipe + INSIDE)
    one = train(tmp_path / "r.yaml", overrides=still, out=tmp_path / "one", quiet=True, figures=False)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "pellucid", "train", str(tmp_path / "r.yaml")]
    subprocess.run(
        [*command, *(part for text in still for part in ("-s", text)), "--out", str(tmp_path / "two"), "--quiet"], check=True, capture_output=True, timeout=300
    )
    assert bits(Run(tmp_path / "two")) == bits(one)


CASES = {
    "more than there are": ("inside.neighbours=16000",),
    "val and test": ("data.test=12",),
    "a batch of one": ("train.batch_size=1", "data.train=6", "train.phases.0.epochs=1"),
    "no val": ("data.val=null", "inside.split=train"),
}


@pytest.mark.proof
@pytest.mark.parametrize("case", CASES)
def test_odd_runs_keep_what_verifies(case: str, small_recipe: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(small_recipe + INSIDE)
    run = train(tmp_path / "r.yaml", overrides=CASES[case], out=tmp_path / "run", quiet=True, figures=False)
    assert [text for text in verify(run).lines() if text.startswith("MISMATCH")] == []
    assert {path.name for path in run.inside.iterdir()} >= set(NEW)


def test_memory_that_runs_out_in_the_last_evaluation_keeps_what_verifies(small_recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pellucid import snapshots

    real = snapshots.penultimate

    def small(module, images, classifier):  # type: ignore[no-untyped-def]
        if len(images) > 4:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return real(module, images, classifier)

    monkeypatch.setattr(snapshots, "penultimate", small)
    (tmp_path / "r.yaml").write_text(small_recipe + INSIDE)
    run = train(tmp_path / "r.yaml", out=tmp_path / "run", quiet=True, figures=False)
    assert any("memory ran out in the evaluation: it takes" in note for note in run.record.notes)
    assert [text for text in verify(run).lines() if text.startswith("MISMATCH")] == []
    assert {path.name for path in run.inside.iterdir()} >= set(NEW)


@pytest.mark.proof
def test_runs_that_are_killed_keep_the_same_pictures_and_attention(kept: Run, small_recipe: str, tmp_path: Path) -> None:
    """Killed while the last files are written, again and again."""
    (tmp_path / "r.yaml").write_text(small_recipe + INSIDE)
    script = "import pellucid, sys; pellucid.train(sys.argv[1], overrides=['train.checkpoint_seconds=0'], out=sys.argv[2], quiet=True, figures=False)"
    marks = ["predictions/val.npz", "thumbnails/val", "inside/arrays.npz", "inside/attention.npz", "inside/neighbours.webp", "inside/neighbours.npz"]
    killed = 0
    for mark in marks:
        folder = tmp_path / mark.replace("/", "-")
        child = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "r.yaml"), str(folder)], stderr=subprocess.DEVNULL)
        while not (folder / mark).exists() and child.poll() is None:
            time.sleep(0.0005)
        child.send_signal(signal.SIGKILL)
        child.wait()
        killed += Run(folder).record.status != "done"
        run = Run(folder) if Run(folder).record.status == "done" else resume(folder, quiet=True, figures=False)
        assert bits(run) == bits(kept), mark
    assert killed >= 4, "too few kills fell into the writing: choose other moments"
