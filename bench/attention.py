"""What recording attention costs: the class row of every layer of a ViT at 2,305 tokens, beside the plain pass and `output_attentions=True`.

timm's ViT-S/8 at 384 px with fused kernels, recorded and not; the same sizes as a transformers ViT with sdpa, recorded and not, and its eager weights
of all layers. Random weights: they change no time. Times take turns within each round. Memory is the highest resident memory of a process of its own
above that before the pass, the median over processes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from peers import INSTALL, Spread, is_installed, machine, markdown_table

SIZE, PATCH, WIDTH, DEPTH, HEADS = 384, 8, 384, 12, 6
WAYS = (
    "timm, plain",
    "timm, class row of all layers",
    "transformers, plain (sdpa)",
    "transformers, class row of all layers",
    "transformers, output_attentions=True",
)


def timm_model() -> torch.nn.Module:
    import timm

    return timm.create_model("vit_small_patch8_224", img_size=SIZE).eval()


def transformers_model(implementation: str) -> Any:
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=WIDTH, num_hidden_layers=DEPTH, num_attention_heads=HEADS, intermediate_size=4 * WIDTH, image_size=SIZE, patch_size=PATCH,
        attn_implementation=implementation,
    )  # fmt: skip
    return ViTModel(config).eval()


def prepared(way: str) -> Callable[[torch.Tensor], Any]:
    """A function that runs one image the given way and returns what it would hand out."""
    from pellucid.inside.attention import record

    library, _, how = way.partition(", ")
    model = timm_model() if library == "timm" else transformers_model("eager" if "output" in how else "sdpa")
    if how.startswith("plain"):
        return model
    if "output" in how:
        return lambda x: model(x, output_attentions=True)

    def recorded(x: torch.Tensor) -> Any:
        with record(model) as recording:
            model(x)
        assert len(recording.records) == DEPTH
        assert recording.records[0].weights.shape == (1, HEADS, 1, (SIZE // PATCH) ** 2 + 1)
        return recording

    return recorded


def peak_of(way: str) -> float:
    """MiB of resident memory that a pass adds at its highest, after one pass has warmed allocator and kernels up at a small size."""
    source = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import attention; attention.child({way!r})"
    done = subprocess.run([sys.executable, "-c", source], check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def child(way: str) -> None:
    run = prepared(way)
    status = Path("/proc/self/status")

    def figure(name: str) -> int:
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(name))

    with torch.no_grad():
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = figure("VmRSS")
        held = run(torch.randn(1, 3, SIZE, SIZE))
    print(json.dumps((figure("VmHWM") - before) / 1024))
    del held


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--processes", type=int, default=5)
    arguments = parser.parse_args()
    ways = [way for way in WAYS if way.startswith("timm") or is_installed("transformers")]
    runs = {way: prepared(way) for way in ways}
    times: dict[str, list[float]] = {way: [] for way in ways}
    x = torch.randn(1, 3, SIZE, SIZE)
    with torch.no_grad():
        for way in ways:
            runs[way](x)
        for number in range(arguments.rounds):
            for way in ways if number % 2 == 0 else reversed(ways):
                began = time.perf_counter()
                runs[way](x)
                times[way].append(time.perf_counter() - began)
    peaks = {way: [peak_of(way) for _ in range(arguments.processes)] for way in ways}
    rows = []
    for way in ways:
        base = ways[0] if way.startswith("timm") else "transformers, plain (sdpa)"
        ratio = Spread.of(a / b for a, b in zip(times[way], times[base], strict=True))
        peak, plain = statistics.median(peaks[way]), statistics.median(peaks[base])
        between = f"{min(peaks[way]):.0f} to {max(peaks[way]):.0f}"
        row = (
            way,
            f"{statistics.median(times[way]):.3f} s",
            f"{ratio.median:.3f} ({ratio.low:.3f} to {ratio.high:.3f})",
            f"{peak:.0f} MiB ({between})",
            f"{peak - plain:+.0f} MiB",
        )
        rows.append(row)
    print(
        f"{machine()}\n{(SIZE // PATCH) ** 2 + 1:,} tokens, {DEPTH} layers, one image; {arguments.rounds} rounds, {arguments.processes} processes for memory\n"
    )
    print(markdown_table(["way", "median", "times the plain pass (quartiles)", "peak above start (range)", "more than plain"], rows))
    if len(ways) < len(WAYS):
        print(f"\ntransformers: {INSTALL}")


if __name__ == "__main__":
    main()
