"""What one optimiser step costs over a bare torch loop, with logging and a progress bar: Pellucid and its peers in one run.

Every loop of bench/loops.py has a process of its own whose stderr is a terminal, so that every bar is drawn. The processes stay; in each
round each of them in turn trains `--steps` steps while the others wait, so that all see the machine in the same minutes. The clock is
read where a loop takes a batch: what lies between two readings, wall time and CPU time of all threads of the process, is everything
that happened for those steps.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import gc
import json
import os
import pty
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch

from loops import BARE, BARE_WITH_LOADER, BASES, BATCH, CONTENDERS, SHORTER, Clock
from peers import INSTALL, Spread, is_installed, machine, markdown_table

# ── one process for each, on a terminal of its own ────────────────────────────────────────────────────────────


def answer(name: str, steps: int, blocks: int) -> int:
    """The process of a contender: for each line on stdin train once and print its blocks as JSON."""
    # What a library prints belongs on the terminal; only readings go to the real stdout.
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as readings:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        torch.set_num_threads(1)
        torch.set_flush_denormal(True)
        for _ in sys.stdin:
            clock = Clock(steps, blocks)
            CONTENDERS[name][1](steps, clock)
            gc.collect()  # what a trainer leaves is not what the next round pays
            print(json.dumps(clock.blocks()), file=readings, flush=True)
    return 0


class Terminal:
    """A pseudo-terminal of 160 columns for another process; what arrives is thrown away but for the end of it."""

    def __init__(self) -> None:
        self._main, self.other = pty.openpty()
        fcntl.ioctl(self.other, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 160, 0, 0))
        self.last = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # the last process on the other side has left
            while got := os.read(self._main, 1 << 16):
                self.last = (self.last + got)[-4000:]

    def last_line(self) -> str:
        """What the other process said last before it ended."""
        self._reader.join(timeout=10)
        said = self.last.decode(errors="replace").strip().splitlines()
        return said[-1] if said else "the process ended without a word"

    def close(self) -> None:
        """Once nobody is left on the other side."""
        self._reader.join(timeout=10)
        os.close(self._main)


class Worker:
    """A contender in its own process."""

    def __init__(self, name: str, steps: int, blocks: int) -> None:
        self._terminal = Terminal()
        environment = {
            **os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "TERM": "xterm-256color",
            "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore",
        }  # fmt: skip
        command = [sys.executable, __file__, "--answer", name, "--steps", str(steps), "--blocks", str(blocks)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._terminal.other, env=environment, text=True)
        os.close(self._terminal.other)

    def round(self) -> dict[str, list[float]]:
        """{wall, cpu}: microseconds per step of each block of one training. Raises RuntimeError with what the process said last."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            print("train", file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(self._terminal.last_line())
        return json.loads(line)  # type: ignore[no-any-return]

    def close(self) -> None:
        """End the process and wait for it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()
        self._terminal.close()


# ── rounds, differences, the table ────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Cost:
    """Microseconds per step of one contender, and over its base: the spread of all blocks, and of the differences of the rounds' medians."""

    wall: Spread
    cpu: Spread
    wall_over: Spread | None
    cpu_over: Spread | None


def costs(found: dict[str, list[dict[str, list[float]]]]) -> dict[str, Cost]:
    """{contender: its rounds, each {wall, cpu}: blocks} to costs; each round is compared with the base's round beside it."""

    def over(name: str, kind: str) -> Spread | None:
        base = BASES.get(name, BARE)
        if name in (BARE, BARE_WITH_LOADER) or base not in found:
            return None
        # Means over a round, not medians of its blocks: what comes rarely (a bar, a line in the log) is paid for too.
        return Spread.of(fmean(own[kind]) - fmean(others[kind]) for own, others in zip(found[name], found[base], strict=True))

    def all_blocks(name: str, kind: str) -> Spread:
        return Spread.of(value for one in found[name] for value in one[kind])

    return {name: Cost(all_blocks(name, "wall"), all_blocks(name, "cpu"), over(name, "wall"), over(name, "cpu")) for name in found}


def table(found: dict[str, Cost], absent: dict[str, str]) -> str:
    """A row for each contender in the order of CONTENDERS; `absent` says why there are no numbers."""

    def cell(spread: Spread | None, sign: str = "") -> str:
        return "" if spread is None else f"{spread.median:{sign}.0f} ({spread.low:{sign}.0f} to {spread.high:{sign}.0f})"

    rows = []
    for name in CONTENDERS:
        if name in absent:
            rows.append([name, absent[name], "", "", ""])
        elif name in found:
            cost = found[name]
            rows.append([name, cell(cost.cpu), cell(cost.wall), cell(cost.cpu_over, "+"), cell(cost.wall_over, "+")])
    return markdown_table(["loop", "CPU µs per step", "wall µs per step", "CPU over the bare loop", "wall over the bare loop"], rows)


def measure(names: Sequence[str], *, rounds: int, steps: int, blocks: int) -> tuple[dict[str, Cost], dict[str, str]]:
    """Costs, and why a contender has none. One round before the first is thrown away: it imports."""
    absent = {name: INSTALL for name in names if not is_installed(CONTENDERS[name][0])}
    workers = {name: Worker(name, max(40, steps // SHORTER.get(name, 1)), blocks) for name in names if name not in absent}
    found: dict[str, list[dict[str, list[float]]]] = {name: [] for name in workers}
    try:
        for number in range(rounds + 1):
            print(f"steps: round {number} of {rounds}" if number else "steps: all loops once, which imports", file=sys.stderr, flush=True)
            for name in [name for name in workers if name not in absent]:
                try:
                    blocks_of_round = workers[name].round()
                except RuntimeError as error:
                    absent[name] = f"failed: {error}"
                    del found[name]
                    continue
                if number:
                    found[name].append(blocks_of_round)
    finally:
        for worker in workers.values():
            worker.close()
    return costs(found), absent


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What an optimiser step costs over a bare torch loop, Pellucid beside its peers.")
    parser.add_argument("--rounds", type=int, default=9, help="rounds of all contenders in turn (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=1000, help="steps of a contender in a round (default: %(default)s)")
    parser.add_argument("--blocks", type=int, default=8, help="blocks of steps that a round is timed in (default: %(default)s)")
    parser.add_argument("--only", action="append", choices=list(CONTENDERS), metavar="LOOP", help="this loop alone; repeatable: " + "; ".join(CONTENDERS))
    parser.add_argument("--quick", action="store_true", help="two rounds of 60 steps: does it work, not what does it cost")
    parser.add_argument("--answer", choices=list(CONTENDERS), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.quick:
        given.rounds, given.steps, given.blocks = 2, 60, 3
    return given


def main() -> int:
    given = _arguments()
    if given.answer is not None:
        return answer(given.answer, given.steps, given.blocks)
    found, absent = measure(given.only or list(CONTENDERS), rounds=given.rounds, steps=given.steps, blocks=given.blocks)
    print(f"{machine()}\n")
    print(
        f"One thread, batch of {BATCH}; {given.rounds} rounds of {given.steps} steps ({BARE_WITH_LOADER}, and Pellucid, whole: an eighth of that), the loops "
        f"in turn. Median (quartiles) over the {given.rounds * given.blocks} blocks; differences: of the means of each of the {given.rounds} rounds. "
        f"`Pellucid, whole` over `{BARE_WITH_LOADER}`.\n"
    )
    print(table(found, absent))
    return 0


if __name__ == "__main__":
    sys.exit(main())
