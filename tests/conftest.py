"""What the tests share: a cache of their own, the real photographs when they are there, and one small trained run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the command line does, before torch is imported
# Tests that run side by side share the cores: threads of two that take turns on the same ones cost a seventh of the time.
os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))))
REPOSITORY = Path(__file__).resolve().parent.parent

SMALL = """\
task: classification
data: {source: scenes, train: 50, val: 24, image_size: 32}
model: {name: timm/test_vit, options: {patch_size: 8, embed_dim: 32, num_heads: 2, depth: 2}}
augment: {random_crop: 2, horizontal_flip: 0.5}
train:
  batch_size: 16
  threads: 1
  phases:
    - {epochs: 2, optimizer: {name: adamw, lr: 1e-3}, schedule: {name: cosine, warmup_steps: 2}}
"""


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def _same_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.fixture
def seeded() -> Iterator[None]:
    """torch's generator at 0 and one thread, for numbers that do not depend on what ran before."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def photographs() -> Path:
    """The folder of real photographs, or a skip that says where it was looked for."""
    folder = Path(os.environ.get("PELLUCID_DATA") or REPOSITORY.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real photographs at {folder}; set PELLUCID_DATA")
    return folder


@pytest.fixture(scope="session")
def small_recipe() -> str:
    """The text of a recipe that trains in a second."""
    return SMALL


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of `small_recipe`; read only."""
    from pellucid.train import train

    folder = tmp_path_factory.mktemp("runs")
    (folder / "small.yaml").write_text(SMALL)
    return train(folder / "small.yaml", out=folder / "small", quiet=True).path


@pytest.fixture
def copied_run(small_run: Path, tmp_path: Path) -> Path:
    """A copy of `small_run` that a test may damage."""
    return Path(shutil.copytree(small_run, tmp_path / "copied"))


@pytest.fixture
def pellucid(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command line in this process: (exit code, stdout, stderr)."""
    from pellucid.cli import main

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(a) for a in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
