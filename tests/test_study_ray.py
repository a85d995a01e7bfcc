"""A study on a Ray cluster: the numbers of the local run bit for bit, also when a node is lost in the middle; and what is refused before."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pellucid.errors import InterruptedError, MissingError, UsageError
from pellucid.files import file_hash
from pellucid.run import Run
from pellucid.study import run_study

STUDY = """\
recipe: base.yaml
seeds: 2
shared:
  own: {recipe: base.yaml, set: {seed: 7, train.phases.0.epochs: 3}}
settings:
  A: {set: {train.phases.0.epochs: 30, train.checkpoint_seconds: 0}}
  C: {set: {train.phases.0.epochs: 4}, from: {model.weights: own}}
"""


def written(folder: Path, recipe: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "base.yaml").write_text(recipe)
    (folder / "study.yaml").write_text(STUDY)
    return folder / "study.yaml"


def weights(folder: Path) -> dict[str, str]:
    """{path in the study: hash} of the weights of every run."""
    return {str(file.relative_to(folder)): file_hash(file) for file in sorted(folder.glob("*/**/final.safetensors"))}


def numbers(folder: Path) -> dict[str, Any]:
    return {str(file.parent.relative_to(folder)): {m.key: m.value for m in Run(file.parent).measurements.values()} for file in folder.glob("*/**/run.json")}


def when(found: Callable[[], bool], act: Callable[[], object]) -> threading.Thread:
    """A thread that acts as soon as something is found."""

    def wait() -> None:
        until = time.monotonic() + 120
        while time.monotonic() < until:
            if found():
                act()
                return
            time.sleep(0.02)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def epochs(run: Path) -> int:
    return sum(line["kind"] == "train" for line in Run(run).metrics()) if (run / "metrics.jsonl").is_file() else 0


def test_without_ray_the_remedy_is_told(
    small_recipe: str, tmp_path: Path, pellucid: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    code, out, err = pellucid("study", written(tmp_path, small_recipe), "--out", tmp_path / "out", "--on", "ray", "--quiet")
    assert (code, out) == (MissingError.exit_code, "")
    assert err == "--on ray needs Ray, which is not installed: pip install 'pellucid[ray]'\n"


def test_an_unknown_place_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--on: expected local or ray; got 'rya'. Did you mean 'ray'?"):
        run_study(tmp_path / "s.yaml", on="rya")


def test_a_run_without_its_number_of_threads_is_refused(small_recipe: str, tmp_path: Path) -> None:
    file = written(tmp_path, small_recipe.replace("  threads: 1\n", ""))
    for given, first, remedy in (
        ([], "own", "-s own:train.threads=N -s train.threads=N."),
        (["train.threads=1"], "own", "-s own:train.threads=N."),
        (["own:train.threads=1"], "A, seed 1", "-s train.threads=N."),
    ):
        with pytest.raises(UsageError) as caught:
            run_study(file, out=tmp_path / "out", on="ray", overrides=given, quiet=True)
        told = f"{first}: on Ray train.threads must be set: it is the cores that a run takes, and decides its bits. Give {remedy}"
        assert str(caught.value) == told
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("given", ["--address", "RAY_ADDRESS"])
def test_an_address_without_a_cluster_is_told_at_once_and_leaves_no_folder(
    given: str, small_recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and listens to nobody
        free = f"127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: False))  # Ray itself is not asked
        monkeypatch.setenv("RAY_ADDRESS", free if given == "RAY_ADDRESS" else "")
        address, began = "auto" if given == "RAY_ADDRESS" else free, time.monotonic()
        with pytest.raises(UsageError, match=rf"--address {free}: no Ray cluster could be reached: .*refused\. `ray start --head` on one node"):
            run_study(written(tmp_path, small_recipe), out=tmp_path / "out", on="ray", address=address, quiet=True)
    assert time.monotonic() - began < 5
    assert not (tmp_path / "out").exists()


def worker(name: str) -> tuple[int, int]:
    """(process, its parent, which is the raylet of its node) of the Ray worker that trains a run."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"ray::{name}" in (folder / "cmdline").read_bytes().decode(errors="replace"):
                return int(folder.name), int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    raise AssertionError(f"no worker of Ray trains {name}")


# ── on a cluster of two nodes on this machine ─────────────────────────────────────────────────────────────────


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A cluster of a head without cores and two nodes with one each, to which this process is connected."""
    pytest.importorskip("ray")
    import ray
    from ray.cluster_utils import Cluster

    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 100_000_000})
    for _ in range(2):
        found.add_node(num_cpus=1, object_store_memory=100_000_000)
    ray.init(address=found.address, log_to_driver=False)
    yield found
    ray.shutdown()
    found.shutdown()


@pytest.mark.proof
@pytest.mark.filterwarnings("default")  # of Ray
def test_ray_gives_the_bits_of_this_machine_and_a_lost_node_loses_nothing(small_recipe: str, tmp_path: Path, cluster: Any) -> None:
    began = time.monotonic()
    local = run_study(written(tmp_path / "local", small_recipe), out=tmp_path / "local" / "out", at_once=2, quiet=True)
    print(f"local: {time.monotonic() - began:.1f} s")
    began = time.monotonic()
    on_ray = run_study(written(tmp_path / "ray", small_recipe), out=tmp_path / "ray" / "out", on="ray")
    print(f"ray, two nodes: {time.monotonic() - began:.1f} s")
    assert (local.failed, on_ray.failed) == ({}, {})
    assert weights(tmp_path / "ray" / "out") == weights(tmp_path / "local" / "out")
    assert numbers(tmp_path / "ray" / "out") == numbers(tmp_path / "local" / "out")
    assert len(weights(tmp_path / "ray" / "out")) == 5

    import ray

    file, out = written(tmp_path / "lost", small_recipe), tmp_path / "lost" / "out"
    first, seen = out / "runs" / "A" / "seed-1", dict[str, Any]()

    def kill() -> None:
        """The raylet of the node that trains A with -9, and with it all that runs there, as when a machine is switched off."""
        _, raylet = worker("A, seed 1")
        (lost,) = [node for node in cluster.worker_nodes if raylet in [found.process.pid for found in node.all_processes["raylet"]]]
        cluster.remove_node(lost, allow_graceful=False)
        seen["epochs"] = epochs(first)

    thread = when(lambda: epochs(first) >= 3, kill)
    began = time.monotonic()
    result = run_study(file, out=out, on="ray")
    thread.join()
    print(f"ray, the node that trained A killed after epoch {seen['epochs']} of 30: {time.monotonic() - began:.1f} s")
    assert 3 <= seen["epochs"] < 30
    assert result.failed == {}
    assert sum(node["Alive"] for node in ray.nodes()) == 2  # the head and one
    assert weights(out) == weights(tmp_path / "local" / "out")
    assert numbers(out) == numbers(tmp_path / "local" / "out")


@pytest.mark.proof
@pytest.mark.filterwarnings("default")
def test_a_lost_worker_s_run_and_an_interrupted_study_go_on_from_checkpoints(small_recipe: str, tmp_path: Path, cluster: Any) -> None:
    file, out = written(tmp_path, small_recipe), tmp_path / "out"
    first = out / "runs" / "A" / "seed-1"
    thread = when(lambda: epochs(first) >= 3, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(InterruptedError, match="The same command goes on"):
        run_study(file, out=out, on="ray", quiet=True)
    thread.join()
    at = Run(first).record
    assert (at.status, 3 <= at.epoch < 30) == ("interrupted", True)

    killed: list[int] = []

    def kill() -> None:
        killed.append(worker("A, seed 1")[0])
        os.kill(killed[0], signal.SIGKILL)

    thread = when(lambda: epochs(first) >= at.epoch + 3, kill)
    result = run_study(file, out=out, on="ray", quiet=True)
    thread.join()
    assert (result.failed, len(killed)) == ({}, 1)
    from pellucid.train import train

    unbroken = train(first / "recipe.yaml", out=tmp_path / "unbroken", quiet=True, figures=False)
    assert file_hash(unbroken.final_weights) == file_hash(Run(first).final_weights)


@pytest.mark.proof
@pytest.mark.filterwarnings("default")
def test_a_run_that_no_node_has_room_for_is_refused(small_recipe: str, tmp_path: Path, cluster: Any) -> None:
    file = written(tmp_path, small_recipe)
    with pytest.raises(UsageError, match=r"A, seed 1 needs 3 cores, and no node of the Ray cluster has them \(the largest has 1 cores\)"):
        run_study(file, out=tmp_path / "out", on="ray", overrides=["train.threads=3"], quiet=True)


@pytest.mark.proof
@pytest.mark.filterwarnings("default")
def test_a_node_that_does_not_see_the_folder_is_named(small_recipe: str, tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pellucid.study_workers._seen_from_here", lambda token: (False, {}))
    with pytest.raises(UsageError, match="node .* of the Ray cluster does not see this folder. Give --out a folder that all nodes share"):
        run_study(written(tmp_path, small_recipe), out=tmp_path / "out", on="ray", quiet=True)
