"""An epoch of a recipe with each speed-up taken away, and with those added that are not on by default: what was kept, and why.

Each training has a process of its own; in each round every variant takes its turn, so that all see the machine in the same minutes.
Seconds are those of the training epochs in metrics.jsonl, without imports, decoding into the store (done before the first round) and
evaluation. The ratio is that of the medians within a round. "bits" compares the final weights with those of the recipe as it is.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from peers import machine, markdown_table

ROOT = Path(__file__).resolve().parent.parent
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
SHIPPED = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "1000"}  # as the command line sets them


@dataclass(frozen=True)
class Variant:
    """A training that differs in one thing. environment: how OpenMP's threads wait; patch: code run before training."""

    name: str
    kept: str
    overrides: Sequence[str] = ()
    patch: str = ""
    environment: Sequence[tuple[str, str]] = tuple(SHIPPED.items())


NO_FLUSH = "import torch; torch.set_flush_denormal = lambda mode: None"
NOT_FUSED = "import torch; real = torch.optim.AdamW; torch.optim.AdamW = lambda groups, **k: real(groups, **{**k, 'fused': False})"
BASE = Variant("as it is", "")
VARIANTS = [
    BASE,
    Variant("without the store: decoded in every epoch", "store kept", ["data.store.limit_gb=0"]),
    Variant("without reading ahead (0 workers)", "reading ahead kept", ["data.workers=0"]),
    Variant("freed memory goes back to the system", "keeping it kept", patch="import pellucid.runtime as r; r._keep_freed_memory = lambda: None"),
    Variant("idle threads sleep at once", "a short look kept", environment=[("OMP_WAIT_POLICY", "passive")]),
    Variant("idle threads look for long (OpenMP's default)", "a short look kept, for busy machines", environment=[]),
    Variant("denormal numbers as they come", "flushing kept", patch=NO_FLUSH),
    Variant("optimiser not fused", "fused kept", patch=NOT_FUSED),
    Variant("contiguous instead of channels_last", "a setting of the recipe", ["train.channels_last=false"]),
    Variant("bf16", "a setting, off on the CPU", ["train.precision=bf16"]),
    Variant("kernels that need not be deterministic", "deterministic kept", patch="import torch; torch.use_deterministic_algorithms = lambda *a, **k: None"),
    Variant("a checkpoint every second", "every 120 s by default", ["train.checkpoint_seconds=1"]),
]


CHILD = """
import json, sys
patch, recipe, out, *overrides = sys.argv[1:]
exec(patch)
import pellucid
from pellucid.files import file_hash
run = pellucid.train(recipe, overrides=overrides, out=out, quiet=True, figures=False)
lines = [line["seconds"] for line in run.metrics() if line["kind"] == "train"]
print(json.dumps({"seconds": lines, "hash": file_hash(run.final_weights)}))
"""


def train(variant: Variant, recipe: Path, overrides: Sequence[str], folder: Path) -> tuple[float, str]:
    """(median seconds of an epoch, hash of the final weights) of one training."""
    environment = {name: value for name, value in os.environ.items() if name not in WAITING} | dict(variant.environment)
    with tempfile.TemporaryDirectory(dir=folder) as out:
        command = [sys.executable, "-c", CHILD, variant.patch, str(recipe), str(Path(out, "run")), *overrides, *variant.overrides]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    found = json.loads(done.stdout.splitlines()[-1])
    return median(found["seconds"]), found["hash"]


def main() -> int:
    parser = argparse.ArgumentParser(description="What each speed-up is worth on a recipe.")
    parser.add_argument("--recipe", default="flowers-mobilenet", help="name of a shipped recipe (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=3, help="epochs of each training (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="trainings of each variant (default: %(default)s)")
    parser.add_argument("-s", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="a value of the recipe, for all variants")
    parser.add_argument("--only", action="append", metavar="WORD", help="only variants whose name holds this word, beside the base; repeatable")
    options = parser.parse_args()
    variants = [v for v in VARIANTS if v is BASE or not options.only or any(word in v.name for word in options.only)]
    recipe = ROOT / "recipes" / f"{options.recipe}.yaml"
    overrides = [f"train.phases.0.epochs={options.epochs}", *options.overrides]
    seconds: dict[str, list[float]] = {variant.name: [] for variant in variants}
    hashes: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = str(Path(folder, "cache"))
        train(BASE, recipe, ["train.phases.0.epochs=1", *options.overrides], Path(folder))  # decodes
        for number in range(options.rounds):
            for variant in variants:
                epoch, hashes[variant.name] = train(variant, recipe, overrides, Path(folder))
                seconds[variant.name].append(epoch)
                print(f"round {number + 1} of {options.rounds}: {variant.name}: {epoch:.2f} s", file=sys.stderr, flush=True)
    rows = []
    for variant in variants:
        ratios = [a / b for a, b in zip(seconds[variant.name], seconds[BASE.name], strict=True)]
        ratio = "" if variant is BASE else f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        same = "" if variant is BASE else "equal" if hashes[variant.name] == hashes[BASE.name] else "other"
        rows.append([variant.name, f"{median(seconds[variant.name]):.2f}", ratio, same, variant.kept])
    print(f"{machine()}; {options.recipe}, {options.epochs} epochs, {options.rounds} rounds\n")
    print(markdown_table(["variant", "s an epoch, median", "times as it is (smallest to largest)", "bits", "decision"], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
