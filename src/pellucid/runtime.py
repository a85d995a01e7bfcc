"""What fixes the bits besides recipe and data: device, number format, threads, determinism; and a description of the machine.

`start` sets torch's global state once, before the first operation: denormal numbers are flushed to zero (without it
fine-tuning SqueezeNet on a CPU becomes 5 times slower after the first epoch), freed memory is kept, kernels are the deterministic ones where
torch has them, TF32 is off, and the number of threads is fixed because it decides the order of CPU sums.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib.metadata
import os
import platform
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pellucid.distributed import ALONE, Processes
from pellucid.errors import UsageError

LIBRARIES = ("torch", "torchvision", "timm", "segmentation_models_pytorch", "numpy", "pillow", "torchmetrics", "scikit-learn", "safetensors", "pydantic")
DECIDES_BITS = ("device_class", "precision", "threads", "channels_last", "libraries")  # of what `describe` gives
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
_NO_MEMORY = (
    "not enough memory", "can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "std::bad_alloc",
)  # fmt: skip
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Runtime:
    """The machine as a run uses it."""

    device: torch.device
    precision: str
    threads: int
    channels_last: bool
    processes: Processes = ALONE

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def place(self, module: nn.Module) -> nn.Module:
        """The module itself, on the device and in the memory format."""
        return module.to(self.device).to(memory_format=self.memory_format)

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """Forward passes in the recipe's number format; weights and sums stay float32."""
        dtype = _AUTOCAST.get(self.precision)
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
            yield

    def seed(self, seed: int) -> None:
        """Restart the generators of this device (dropout, drop-path) at a seed in [0, 2^63).

        torch.manual_seed would also look for every other kind of accelerator, at 100 times the cost.
        """
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.default_generators[torch.cuda.current_device()].manual_seed(seed)

    def free_cached(self) -> None:
        """Give memory that torch keeps for later back to the device."""
        gc.collect()  # an error's frames may still hold tensors in a cycle
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)  # what `_keep_freed_memory` kept


def start(*, device: str, precision: str, threads: int | None, channels_last: bool, processes: Processes = ALONE) -> Runtime:
    """Set torch's global state and return what was set. Raises UsageError when CUDA is asked for and absent.

    Several processes on one machine take one GPU each, and share the cores when `threads` does not say otherwise.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("train.device is cuda, but torch sees no CUDA device. Use device: auto or cpu, or see `pellucid doctor`.")
    chosen = torch.device("cuda" if device == "cuda" or (device == "auto" and torch.cuda.is_available()) else "cpu")
    if chosen.type == "cuda" and not processes.alone:
        if processes.local_size > torch.cuda.device_count():
            raise UsageError(f"{processes.local_size} processes on this machine, which has {torch.cuda.device_count()} GPUs: start one process for each GPU.")
        chosen = torch.device("cuda", processes.local)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    count = threads or max(1, num_cores() // processes.local_size)
    _keep_freed_memory()
    torch.set_flush_denormal(True)
    torch.set_num_threads(count)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Every new tensor would be filled first under deterministic mode: a cost without a gain, no code of ours reads it.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    return Runtime(chosen, precision, count, channels_last, processes)


def _keep_freed_memory() -> None:
    """Let the C library keep what is freed. Activations come and go at every step, and by default glibc returns the large ones
    to the system, which hands them out again zeroed, page by page: a fifth of an epoch of SqueezeNet on a CPU (docs/log.md).
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library has no mallopt
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # bytes, the most that glibc takes
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that an allocation failed, on any device, by torch or by what it calls."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(words in str(error) for words in _NO_MEMORY)


def num_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def seed_torch(seed: int) -> None:
    """Restart torch's generators (dropout, drop-path, initialisation) at a seed in [0, 2^63)."""
    torch.manual_seed(seed)


@contextlib.contextmanager
def named_nondeterminism(note: Callable[[str], None]) -> Iterator[None]:
    """Within the block each kernel without a deterministic form is told to `note(line)` instead of a warning; the run keeps each line once."""
    told = "does not have a deterministic implementation"
    shown = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: str | None = None) -> None:
        if told in str(message):
            note(f"not deterministic on this device: {str(message).split(' does not')[0]}")
        else:
            shown(message, category, filename, lineno, file, line)

    with warnings.catch_warnings():
        warnings.filterwarnings("always", message=f".*{told}")
        warnings.showwarning = show
        yield


def describe(runtime: Runtime) -> dict[str, Any]:
    """What environment.json holds: device class, versions, threads and the settings that decide the bits."""
    cuda = runtime.device.type == "cuda"
    return {
        "device": runtime.device.type,
        "device_name": torch.cuda.get_device_name() if cuda else _cpu_name(),
        "device_class": _device_class(runtime.device),
        "precision": runtime.precision,
        "threads": runtime.threads,
        "processes": runtime.processes.size,
        "channels_last": runtime.channels_last,
        "flush_denormal": _flushes_denormals(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "tf32": False,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": num_cores(),
        "memory_gb": round(_total_memory() / 1e9, 1),
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "cuda": torch.version.cuda if cuda else None,
        "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
    }


def _flushes_denormals() -> bool:
    """Whether all threads give 0 for what float32 could only hold as a denormal number.

    Those that were there before `start` do not: OpenMP's threads inherit the setting when they are made.
    """
    return not bool((torch.full((1 << 20,), 1e-30) * 1e-10).any())


def _device_class(device: torch.device) -> str:
    """Devices of one class give the same bits: the GPU's model, or the CPU's instruction set as torch uses it."""
    if device.type == "cuda":
        return f"cuda {torch.cuda.get_device_name()}"
    return f"cpu {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def free_memory(device: torch.device) -> int:
    """Bytes that are free on the device now; on the CPU at most what the process's own limits (control group, ulimit -v) leave."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return max(0, min([_available(), *_limits()]))


def _available() -> int:
    """Free memory of the machine."""
    with contextlib.suppress(OSError), open("/proc/meminfo") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return _total_memory()


def _limits() -> list[int]:
    """Room below each limit that is set for this process."""
    found = []
    for limit_file, used_file in (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")):
        with contextlib.suppress(OSError, ValueError):
            limit, used = (int(Path("/sys/fs/cgroup", name).read_text()) for name in (limit_file, used_file))
            found.append(limit - used + _reclaimable())
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY:
            found.append(limit - int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize())
    return found


def _reclaimable() -> int:
    """Bytes of the control group that are file cache and would go first."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/sys/fs/cgroup/memory.stat").read_text().splitlines():
            if line.startswith("inactive_file "):
                return int(line.split()[1])
    return 0


def _total_memory() -> int:
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 0


def _cpu_name() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
