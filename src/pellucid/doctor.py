"""What a machine has for Pellucid, and what it lacks, with the remedy."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import shutil
from dataclasses import dataclass

import torch

from pellucid import __version__
from pellucid.data.store import cache_folder
from pellucid.runtime import LIBRARIES, free_memory, num_cores
from pellucid.tables import size

EXTRAS = {"export": ("onnx", "onnxscript", "onnxruntime"), "hub": ("datasets",)}


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, what is there, whether that is enough, what to do if not."""

    name: str
    value: str
    ok: bool = True
    remedy: str = ""


def examine() -> list[Finding]:
    """Versions, devices, memory, extras and caches."""
    cpu = torch.device("cpu")
    findings = [
        Finding("pellucid", __version__),
        Finding("python", platform.python_version(), (3, 11) <= tuple(map(int, platform.python_version_tuple()[:2])) < (3, 14), "use Python 3.11 to 3.13"),
        *[Finding(name, importlib.metadata.version(name)) for name in LIBRARIES],
        Finding("cpu", f"{num_cores()} cores, {torch.backends.cpu.get_cpu_capability()}, {size(free_memory(cpu))} free"),
    ]
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            device = torch.device("cuda", i)
            bf16 = "yes" if torch.cuda.is_bf16_supported() else "no"
            findings.append(Finding(f"cuda:{i}", f"{torch.cuda.get_device_name(device)}, {size(free_memory(device))} free, bf16 {bf16}"))
    else:
        findings.append(Finding("cuda", "none: training runs on the CPU"))
    for extra, modules in EXTRAS.items():
        missing = [name for name in modules if importlib.util.find_spec(name) is None]
        state = f"not installed ({', '.join(missing)})" if missing else "installed"
        findings.append(Finding(f"extra {extra}", state, not missing, f"pip install 'pellucid[{extra}]'"))
    folder = cache_folder()
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(existing).free
    findings.append(Finding("cache", f"{folder}, {size(free)} free on its disk", free > 1e9, "free some space or set XDG_CACHE_HOME"))
    return findings
