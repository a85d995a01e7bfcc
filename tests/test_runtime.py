"""The machine as a run uses it: threads, denormals, precision, and what is not deterministic by name."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from pellucid import runtime
from pellucid.errors import UsageError
from pellucid.runtime import describe, free_memory, named_nondeterminism, num_cores, seed_torch, start


def started(**changes: object) -> runtime.Runtime:
    return start(**{"device": "cpu", "precision": "fp32", "threads": 1, "channels_last": False, **changes})  # type: ignore[arg-type]


def test_threads_are_those_asked_for_and_else_the_cores() -> None:
    assert started(threads=2).threads == torch.get_num_threads() == 2
    assert started(threads=None).threads == torch.get_num_threads() == num_cores()
    assert started().threads == torch.get_num_threads() == 1
    assert describe(started())["threads"] == 1


def test_denormals_are_flushed_and_the_record_is_what_was_seen() -> None:
    """2^-126 is the least normal float32; half of it exists only as a denormal."""
    torch.set_flush_denormal(False)
    try:
        assert float(torch.tensor(2.0**-126) * 0.5) == 2.0**-127
        assert describe(runtime.Runtime(torch.device("cpu"), "fp32", 1, False))["flush_denormal"] is False
    finally:
        found = started()
    half = torch.tensor(2.0**-126) * 0.5
    assert float(half) == 0.0
    assert describe(found)["flush_denormal"] is True


def test_determinism_is_on_and_tf32_off() -> None:
    started()
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cudnn.benchmark


def test_cuda_without_cuda_is_refused_with_the_remedy() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(UsageError, match=r"train\.device is cuda, but torch sees no CUDA device. Use device: auto or cpu, or see `pellucid doctor`.") as caught:
        started(device="cuda")
    assert caught.value.exit_code == 2
    assert started(device="auto").device == torch.device("cpu")


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_autocast_runs_the_forward_pass_in_the_recipes_format(precision: str, dtype: torch.dtype) -> None:
    linear = nn.Linear(4, 4)
    with started(precision=precision).autocast():
        output = linear(torch.ones(1, 4))
    assert output.dtype == dtype
    assert linear.weight.dtype == torch.float32
    assert linear(torch.ones(1, 4)).dtype == torch.float32


def test_place_keeps_the_module_and_sets_the_memory_format() -> None:
    conv = nn.Conv2d(3, 8, 3)
    assert started().place(conv) is conv
    assert not conv.weight.is_contiguous(memory_format=torch.channels_last)
    started(channels_last=True).place(conv)
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)


def test_a_seed_restarts_the_generator() -> None:
    seed_torch(2**63 - 1)
    first = torch.rand(5)
    seed_torch(2**63 - 1)
    assert torch.equal(first, torch.rand(5))
    seed_torch(3)
    assert not torch.equal(first, torch.rand(5))


def test_a_kernel_without_a_deterministic_form_is_named_and_other_warnings_stay() -> None:
    notes: list[str] = []

    def work() -> None:
        with named_nondeterminism(notes.append):
            warnings.warn("scatter_add_cuda_kernel does not have a deterministic implementation, but you set ...", UserWarning, stacklevel=1)
            warnings.warn("something else", UserWarning, stacklevel=1)

    with pytest.warns(UserWarning, match="something else"):
        work()
    assert notes == ["not deterministic on this device: scatter_add_cuda_kernel"]


def test_the_description_names_versions_and_device_class() -> None:
    found = describe(started(precision="bf16", channels_last=True))
    assert found["libraries"]["torch"] == torch.__version__.split("+")[0] or found["libraries"]["torch"] == torch.__version__
    assert (found["device"], found["precision"], found["channels_last"], found["cuda"]) == ("cpu", "bf16", True, None)
    assert found["device_class"].startswith("cpu ")
    assert found["cpu_capability"] in found["device_class"]
    assert 0 < free_memory(torch.device("cpu")) <= found["memory_gb"] * 1e9 + 1e8
