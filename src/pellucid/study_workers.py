"""Where the runs of a study are trained: in processes of this machine, or on a Ray cluster.

Every run has a process of its own, in which torch has done nothing before, and so the bits of `pellucid train`. On this
machine it is forked off a server that has imported everything (seconds) and computed nothing. On Ray it is a task whose
worker ends with it; Ray schedules, and starts the runs of a lost worker or node again. Both call `train_job`, which goes
on from whatever stands in the run's folder, so that a run that was killed loses the steps since its last checkpoint and
nothing else. No torch is imported here, because the server and Ray's workers say first how its threads wait.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import importlib.metadata
import multiprocessing
import os
import shutil
import signal
import socket
import time
import traceback
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from pellucid import recipe as recipes
from pellucid.errors import InterruptedError, MissingError, PellucidError, RunError, UsageError
from pellucid.files import file_hash, weights_hash
from pellucid.openmp import sleep_soon
from pellucid.run import DONE, Run

PATIENCE = 60.0  # seconds that a run waits for the process that had it before to end
LOOK = 0.5  # seconds between looks at whether to stop
CONNECTING = 10.0  # seconds for a connection to the head of a Ray cluster
RETRIES = 20  # how often Ray starts a run again whose worker or node was lost
_PR_SET_PDEATHSIG = 1  # prctl.h
_SAME_ON_ALL_NODES = ("pellucid", "torch", "torchvision", "timm", "numpy")  # versions that decide the bits


@dataclass(frozen=True)
class Job:
    """One run to be trained. recipe: YAML with every value, its paths absolute.

    weights: {key of the recipe: file of a shared run}. needs: names of the jobs that leave them. gpu: whether it asks for one. leaves: of a shared run the
    file that others start from.
    """

    name: str
    folder: Path
    recipe: str
    weights: dict[str, Path]
    needs: tuple[str, ...]
    command: list[str]
    threads: int | None
    gpu: bool
    leaves: Path | None = None


@dataclass(frozen=True)
class Outcome:
    """How a job ended. error: what ended it, "" where the run is finished. stopped: whether it was asked to stop and can go on from a checkpoint."""

    job: Job
    error: str = ""
    stopped: bool = False


def train_job(job: Job) -> Outcome:
    """Train the run of a job, resume it, or leave it as it is when it is finished. To be called once in a process."""
    from pellucid.train import resume, train

    try:
        _wait_until_free(job.folder)
        if not (job.folder / "run.json").is_file():
            shutil.rmtree(job.folder, ignore_errors=True)  # what a process left that was killed before the run had begun
            train(recipes.loads(job.recipe, str(job.folder / "recipe.yaml")), out=job.folder, quiet=True, figures=False, command=job.command)
        elif Run(job.folder).record.status != DONE:
            if other := other_weights(job):
                raise RunError(other)
            resume(job.folder, quiet=True, figures=False)
        _leave(job)
    except InterruptedError as error:
        return Outcome(job, str(error), stopped=True)
    except PellucidError as error:
        return Outcome(job, str(error) or type(error).__name__)
    except Exception as error:
        return Outcome(job, f"internal error: {type(error).__name__}: {error}\n{traceback.format_exc()}")
    return Outcome(job)


def _leave(job: Job) -> None:
    """Write the backbone file of a finished classification that others start from; MissingError where another task's file is gone."""
    from pellucid.evaluate import export_run_backbone

    run = Run(job.folder)
    if job.leaves is None or job.leaves.is_file():
        return
    if run.recipe.task != "classification":
        raise MissingError(f"{job.leaves}: the run is finished, and this file of it is gone. Put it back, or remove {job.folder} to train it again.")
    export_run_backbone(run, job.leaves)


def other_weights(job: Job) -> str:
    """What is wrong where a begun run started from other weights than now lie in the file of the shared run; "" where it did not, or cannot be said yet."""
    if not (job.folder / "run.json").is_file():
        return ""
    began_with = Run(job.folder).record.began_with
    for key, file in job.weights.items():
        known = [weights_hash(file)] if file.exists() else []
        known += [file_hash(file)] if file.is_file() else []  # in runs of earlier versions
        if known and began_with.get(key) not in known:
            return (
                f"{job.folder}: {job.name} began with other weights ({key}) than are now in {file}: the shared run was trained anew. "
                "Put its folder back, or remove this one to train it again."
            )
    return ""


def _wait_until_free(folder: Path) -> None:
    """Wait for the process that trains into a folder, when there is one that was told to end; RunError when it does not."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            with (folder / ".lock").open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except FileNotFoundError:
            return
        except OSError:
            if time.monotonic() > until:
                raise RunError(f"{folder}: another process is training into this folder. Wait for it, or end it, and repeat the command.") from None
        time.sleep(0.1)


def _blocked(job: Job, ended: Mapping[str, Outcome]) -> Outcome | None:
    """How a job ends that cannot be trained, because one that it builds on failed or was stopped; None when it can."""
    for name in job.needs:
        if name in ended and ended[name].error:
            stopped = ended[name].stopped
            return Outcome(job, f"not trained, because {name} {'was stopped' if stopped else 'failed'}, on which it builds", stopped=stopped)
    return None


# ── this machine ──────────────────────────────────────────────────────────────────────────────────────────────


def train_here(jobs: Sequence[Job], *, at_once: int, told: Callable[[str], None]) -> Generator[Outcome, None, None]:
    """The outcome of each job as it ends, `at_once` of them trained side by side in their order. Raises InterruptedError, after checkpoints, on a signal."""
    from pellucid.loop import stop_signals

    sleep_soon()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pellucid.train", "pellucid.study_workers", "timm", "torchvision"])
    waiting, running, ended = list(jobs), dict[int, tuple[Job, Any, Connection]](), dict[str, Outcome]()
    here = {job.name for job in jobs}
    asked: set[int] = set()  # processes that are ending already
    with stop_signals() as stop:
        try:
            while waiting or running:
                for job, outcome in [(job, outcome) for job in waiting if (outcome := _blocked(job, ended))]:
                    waiting.remove(job)
                    ended[job.name] = outcome
                    yield outcome
                ready = [job for job in waiting if all(name in ended or name not in here for name in job.needs)]
                for job in ready[: 0 if stop.is_set() else at_once - len(running)]:
                    waiting.remove(job)
                    told(f"training {job.name}")
                    mine, its = context.Pipe(duplex=False)
                    process = context.Process(target=_in_process, args=(job, its), name=job.name)
                    process.start()
                    its.close()
                    running[process.sentinel] = (job, process, mine)
                for sentinel in wait(list(running), LOOK):
                    job, process, mine = running.pop(sentinel)  # type: ignore[arg-type]
                    outcome = _result(job, process, mine)
                    ended[job.name] = outcome
                    yield outcome
                if stop.is_set():
                    _end([process for _, process, _ in running.values()], asked)
                    if not running and waiting:
                        break
        finally:
            _end([process for _, process, _ in running.values()], asked)
            for _, process, _ in running.values():
                process.join()


def _end(processes: Sequence[Any], asked: set[int]) -> None:
    """Ask processes to write a checkpoint and end, each once: a second signal would reach one after its checkpoint, before it has said how it ended."""
    for process in processes:
        if process.pid not in asked:
            process.terminate()
            asked.add(process.pid)


def _in_process(job: Job, result: Connection) -> None:
    os.setsid()  # Ctrl-C is for the study, which passes it on
    # When the server ends, and it does with the study, however that was killed: write a checkpoint and end.
    with contextlib.suppress(OSError, AttributeError):  # another C library has no prctl
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    result.send(train_job(job))


def _result(job: Job, process: Any, result: Connection) -> Outcome:
    """What an ended process said, or how it was ended."""
    with contextlib.suppress(EOFError, OSError), result:
        if result.poll():
            found: Outcome = result.recv()
            return found
    process.join()
    code = process.exitcode
    if code == -signal.SIGTERM:  # before training had begun
        return Outcome(job, "interrupted before its first step", stopped=True)
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    return Outcome(job, f"its process {how}, which is not an error of the recipe; where memory was short, take fewer --jobs. Repeat the command to go on.")


# ── Ray ───────────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def cluster_for(jobs: Sequence[Job], *, address: str, folder: Path) -> Iterator[Any]:
    """The ray module, connected to a cluster that has room for these jobs, for the block; folder: that of the study, which every node must see."""
    if lacking := [job for job in jobs if job.threads is None]:
        remedy = " ".join(dict.fromkeys(threads_option(job.name if job.leaves is not None else "", "N") for job in lacking))
        raise UsageError(f"{lacking[0].name}: on Ray train.threads must be set: it is the cores that a run takes, and decides its bits. Give {remedy}.")
    with _cluster(address) as ray:
        _check_nodes(ray, folder)
        _check_room(ray, jobs)
        yield ray


def threads_option(shared: str, threads: int | str) -> str:
    """What the command line says to set the threads of a shared run by name, of all settings under ""."""
    return f"-s {shared}:train.threads={threads}" if shared else f"-s train.threads={threads}"


def train_on_ray(ray: Any, jobs: Sequence[Job], *, told: Callable[[str], None]) -> Generator[Outcome, None, None]:
    """As `train_here`, on the cluster of `cluster_for`."""
    from pellucid.loop import stop_signals

    with stop_signals() as stop:
        # max_calls: the worker ends with its run, so that no run follows another one in its process.
        task = ray.remote(max_calls=1, max_retries=RETRIES)(_on_ray)
        refs: dict[str, Any] = {}
        for job in jobs:
            needed = [refs[name] for name in job.needs if name in refs]
            refs[job.name] = task.options(num_cpus=job.threads, num_gpus=int(job.gpu), name=job.name).remote(job, *needed)
        told(f"{len(jobs)} runs are with Ray, on {len(_nodes(ray))} nodes")
        waiting, asked = {ref: job for job, ref in zip(jobs, refs.values(), strict=True)}, False
        try:
            while waiting:
                for ref in ray.wait(list(waiting), num_returns=1, timeout=LOOK)[0]:
                    yield _ray_outcome(ray, waiting.pop(ref), ref)
                if stop.is_set() and not asked:
                    asked = True
                    _cancel(ray, waiting)
        finally:
            _cancel(ray, waiting)


def _on_ray(job: Job, *before: Outcome) -> Outcome:
    """What a worker does: nothing when a run behind this one failed."""
    sleep_soon()
    return _blocked(job, {outcome.job.name: outcome for outcome in before}) or train_job(job)


def _ray_outcome(ray: Any, job: Job, ref: Any) -> Outcome:
    try:
        found: Outcome = ray.get(ref)
    except ray.exceptions.TaskCancelledError:
        return Outcome(job, "interrupted before its first step", stopped=True)
    except ray.exceptions.RayError as error:
        return Outcome(job, f"Ray could not train it: {str(error).strip()}")
    return found


def _cancel(ray: Any, refs: Any) -> None:
    """Ask runs on Ray to write a checkpoint and end: the task's main thread sees it as Ctrl-C."""
    for ref in refs:
        ray.cancel(ref, force=False)


@contextmanager
def _cluster(address: str) -> Iterator[Any]:
    """The ray module, connected for the block; a connection that is there already is used as it is."""
    try:
        import ray
    except ImportError:
        raise MissingError("--on ray needs Ray, which is not installed: pip install 'pellucid[ray]'") from None
    if ray.is_initialized():
        yield ray
        return
    _reach((os.environ.get("RAY_ADDRESS") or address) if address == "auto" else address)  # as Ray takes it
    try:
        ray.init(address=address, log_to_driver=False, configure_logging=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise _unreached(address, str(error).splitlines()[0]) from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _reach(address: str) -> None:
    """UsageError when nothing listens at HOST:PORT, which Ray itself says after minutes; of another address it says so at once."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECTING).close()
        except (OSError, OverflowError, UnicodeError) as error:  # the last of names and ports that there cannot be
            raise _unreached(address, str(error)) from None


def _unreached(address: str, why: str) -> UsageError:
    return UsageError(
        f"--address {address}: no Ray cluster could be reached: {why}. `ray start --head` on one node and "
        "`ray start --address HOST:6379` on the others make one."
    )


def _nodes(ray: Any) -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _check_nodes(ray: Any, folder: Path) -> None:
    """UsageError for nodes that do not see the study's folder, or have other versions of what decides the bits."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    token = folder / f".token-{uuid.uuid4().hex}"
    token.write_text(token.name, encoding="utf-8")
    look = ray.remote(max_retries=0, num_cpus=0)(_seen_from_here)
    try:
        asked = {
            node["NodeManagerAddress"]: look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(token)
            for node in _nodes(ray)
        }
        try:
            seen = {name: ray.get(ref) for name, ref in asked.items()}
        except ray.exceptions.RayError as error:
            raise UsageError(f"a node of the cluster could not be asked whether it sees {folder}: {str(error).strip().splitlines()[-1]}") from None
    finally:
        token.unlink(missing_ok=True)
    own = _versions()
    for name, (visible, versions) in seen.items():
        if not visible:
            raise UsageError(
                f"{folder}: node {name} of the Ray cluster does not see this folder. Give --out a folder that all nodes share, such as one on NFS."
            )
        if odd := [f"{library} {versions[library]} there, {own[library]} here" for library in own if versions[library] != own[library]]:
            raise UsageError(f"node {name} of the Ray cluster would give other bits: {', '.join(odd)}. Install the same versions on all nodes.")


def _seen_from_here(token: Path) -> tuple[bool, dict[str, str]]:
    with contextlib.suppress(OSError):
        return token.read_text(encoding="utf-8") == token.name, _versions()
    return False, _versions()


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in _SAME_ON_ALL_NODES}


def _check_room(ray: Any, jobs: Sequence[Job]) -> None:
    """UsageError for a run that no node has room for: Ray would wait for ever."""
    nodes = [node["Resources"] for node in _nodes(ray)]
    for job in jobs:
        if not any(node.get("CPU", 0) >= (job.threads or 1) and node.get("GPU", 0) >= int(job.gpu) for node in nodes):
            most = max(node.get("CPU", 0) for node in nodes)
            wanted = f"{job.threads} cores" + " and a GPU" * job.gpu
            raise UsageError(f"{job.name} needs {wanted}, and no node of the Ray cluster has them (the largest has {most:g} cores). Set train.threads lower.")
