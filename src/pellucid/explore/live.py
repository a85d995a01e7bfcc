"""Which runs there are and what they have become: run folders that may still grow, be damaged, or vanish while somebody looks. Reading only, no torch.

A run is trusted to be data, not to be well meant: its folder may come from somebody else. Before a view is made of it, every file in it is an ordinary one
or a link that stays inside the folder; what cannot be read is a RunError in words, of that run alone.
"""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pellucid.errors import MissingError, PellucidError, RunError
from pellucid.findings import load_findings
from pellucid.run import Run, seed_folders
from pellucid.study_record import StudyFolder
from pellucid.views import EXPLORER, FULLER, encoding, to_json, views

MOST_KEPT = 96_000_000  # bytes of views that are held, the least recently asked for given up first
MOST_RECORD = 20_000_000  # bytes of run.json
MOST_COMPARED = 200  # runs of one comparison
LIVE = ("overview", "curves")  # views of what every epoch adds; the overview has the curves in it
# What a view is made of: it is offered where that is there, until its builder says that there is nothing to show.
SOURCES = {
    "overview": "run.json",
    "features": "inside/findings.json",
    "attention": "inside/findings.json",
    "positions": "inside/findings.json",
    "masks": "inside/masks.json",
    "words": "inside/words.json",
    "mistakes": "predictions",
}
FOUND = ("features", "attention", "positions")  # views of findings.json, which says which of them there are
GROWING = ("run.json", "metrics.jsonl")  # what every epoch changes

HERE_TOO = "the rest is in the run folder."  # what a note says here in place of FULLER


class Shelf:
    """The runs that were named on the command line, by number; those of a folder of seeds or a study as they are begun.

    RunError at once where a path is nothing of this kind.
    """

    def __init__(self, paths: Sequence[str | Path]) -> None:
        self.paths = [Path(path) for path in paths]
        self.runs: list[Run] = []
        self._empty: set[tuple[int, str, str]] = set()  # (run, view, version) of views that have nothing to show
        self._findings: dict[Path, tuple[str, Collection[str]]] = {}  # of a run: the version that was read, and which views its findings hold
        self._made = _Made()
        for path in self.paths:
            if not self._add(path):
                raise RunError(f"{path}: none of its runs was begun. `pellucid train` begins them.")

    def refresh(self) -> None:
        """Take in the runs that were begun since; a folder that cannot be read now keeps those that it had."""
        for path in self.paths:
            try:
                self._add(path)
            except (PellucidError, OSError):
                continue

    def _add(self, path: Path) -> int:
        """How many runs a path stands for; those that are new get a number."""
        found = list(_runs_of(path))
        known = {run.path for run in self.runs}
        self.runs += [run for run in found if run.path not in known]
        return len(found)

    def of(self, number: str) -> Run:
        """The run of a number as an address has it; MissingError where there is none."""
        if not number.isascii() or not number.isdecimal() or len(number) > 6 or int(number) >= len(self.runs):
            raise MissingError(f"There is no run {number[:20]!r} here; expected a number below {len(self.runs)}.")
        return self.runs[int(number)]

    # ── the list ──
    def listed(self) -> list[dict[str, Any]]:
        """What the head of the page shows of each run; of a run that cannot be read `error` says why."""
        self.refresh()
        entries = [self._entry(number, run) for number, run in enumerate(self.runs)]
        repeated = {name for name, n in Counter(run.name for run in self.runs).items() if n > 1}
        for entry, run in zip(entries, self.runs, strict=True):
            if run.name in repeated:  # the seeds of two settings
                entry["name"] = f"{run.path.resolve().parent.name}/{run.name}"
        return entries

    def _entry(self, number: int, run: Run) -> dict[str, Any]:
        entry: dict[str, Any] = {"id": number, "name": run.name, "task": "", "status": "unreadable", "headline": None, "epoch": 0, "epochs": 0, "views": []}
        try:
            _small(run)
            record = run.record
            kept, every = version(run, kept=True), version(run)
            entry |= {
                "task": record.task, "status": record.status, "headline": encoding.number(next(iter(record.measurements), None)), "epoch": record.epoch,
                "epochs": run.recipe.epochs, "kept": kept, "version": every,
                "views": [name for name in SOURCES if self._offered(number, name, run)],
            }  # fmt: skip
        except PellucidError as error:
            entry |= {"error": _said(run, error), "version": "", "kept": ""}
        except OSError as error:
            entry |= {"error": f"{run.path}: {error.strerror}", "version": "", "kept": ""}
        return entry

    def _offered(self, number: int, name: str, run: Run) -> bool:
        """Whether there may be something to show in a view: its file is there, and neither findings nor builder say that it is nothing."""
        if not (run.path / SOURCES[name]).exists() or (number, name, version(run, kept=name not in LIVE)) in self._empty:
            return False
        return name not in FOUND or name in self._found(run)

    def _found(self, run: Run) -> Collection[str]:
        """Which of FOUND the findings of a run hold; all of them where they cannot be read, which the view then says."""
        at = version(run, kept=True)
        known = self._findings.get(run.path)
        if known is None or known[0] != at:
            try:
                found = load_findings(run.inside)
                has = {"features": found.projections, "attention": found.images, "positions": found.positions}
                known = at, [name for name in FOUND if has[name]]
            except PellucidError:
                known = at, FOUND
            self._findings[run.path] = known
        return known[1]

    # ── views ──
    def view(self, number: str, name: str) -> bytes:
        """The JSON of a view, `{"view": …}` with null where there is nothing to show; the same bytes as long as its files are the same."""
        run = self.of(number)
        builders = views()
        if name not in builders:
            raise MissingError(f"There is no view {name[:40]!r}; expected one of {', '.join(builders)}.")
        at = version(run, kept=name not in LIVE)
        key = (number, name, at)
        with self._made.of(key) as slot:
            if slot.body is None:
                safe(run)
                made = builders[name](run, EXPLORER)
                made = made and made | {"notes": [note.replace(FULLER, HERE_TOO) for note in made["notes"]]}
                if made is None:
                    self._empty.add((int(number), name, at))
                slot.body = as_bytes({"view": made, "version": at})
            return slot.body

    def comparison(self, numbers: str) -> bytes:
        """The JSON of the view that lays runs side by side, `numbers` as "0,2"; all of them where it is empty."""
        from pellucid.views.compare import of_runs

        chosen = [self.of(number) for number in numbers.split(",")] if numbers else list(self.runs)
        if len(chosen) > MOST_COMPARED:
            raise MissingError(f"At most {MOST_COMPARED} runs are laid side by side, these are {len(chosen)}.")
        key = ("", numbers, " ".join(version(run) for run in chosen))
        with self._made.of(key) as slot:
            if slot.body is None:
                for run in chosen:
                    safe(run)
                slot.body = as_bytes({"view": of_runs(chosen, EXPLORER), "version": key[2]})
            return slot.body


def as_bytes(found: dict[str, Any]) -> bytes:
    """JSON; half a character of a file name that is no valid Unicode stays the escape that it is."""
    return to_json(found).encode("utf-8", "backslashreplace")


def _runs_of(path: Path) -> Iterator[Run]:
    """The runs of a run folder, a folder of seeds or a study."""
    if (path / "seeds.json").is_file():
        folders = [path / name for name in seed_folders(path)]
        yield from (Run(folder) for folder in folders if (folder / "run.json").is_file() and _stays(folder, path))
    elif (path / "study.json").is_file():
        study = StudyFolder(path)
        found = [run for setting in study.record.settings for run in study.runs(setting.name).values()]
        yield from (run for run in [*study.shared().values(), *found] if _stays(run.path, path))
    else:
        yield Run(path)


def _stays(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def safe(run: Run) -> Run:
    """The run, none of whose files leads out of its folder or is anything but a file. RunError names the first that does; of a folder that is gone too."""
    root = run.path.resolve()
    waiting = [root]
    while waiting:
        try:
            entries = list(os.scandir(waiting.pop()))
        except OSError as error:
            raise RunError(f"{run.path}: the run folder cannot be read: {error.strerror}. Was it moved or deleted?") from None
        for entry in entries:
            path = Path(entry.path)
            if entry.is_symlink():
                if not _stays(path, root):
                    raise RunError(f"{path}: a link that leads out of the run folder; the explorer reads nothing outside. Put the file itself there.")
                continue
            if entry.is_dir(follow_symlinks=False):
                waiting.append(path)
            elif not entry.is_file(follow_symlinks=False):
                raise RunError(f"{path}: expected a file; the explorer reads nothing else in a run folder. Remove it.")
    return run


def _small(run: Run) -> None:
    """RunError where what the list is made of leads out of the run folder or is too large to be what it should be."""
    for path in (run.path / "run.json", run.path / "resolved.yaml"):
        if not _stays(path, run.path):
            raise RunError(f"{path}: a link that leads out of the run folder; the explorer reads nothing outside. Put the file itself there.")
        if path.is_file() and path.stat().st_size > MOST_RECORD:
            raise RunError(f"{path}: has {path.stat().st_size:,} bytes, expected at most {MOST_RECORD:,}; the file was changed")


def version(run: Run, *, kept: bool = False) -> str:
    """A text that changes when the run does. kept: of what is kept of a run (snapshots, findings, predictions) alone, not of what every epoch adds."""
    found = []
    places = [run.snapshots, run.inside, run.path / "predictions", run.thumbnails]
    names = [run.verify_file, *places, *(file for place in places[:3] for file in _files(place)), *([] if kept else [run.path / name for name in GROWING])]
    for path in names:
        try:
            at = path.lstat()
        except OSError:
            continue
        found.append(f"{path.name} {at.st_mtime_ns if stat.S_ISREG(at.st_mode) else 0} {at.st_size if stat.S_ISREG(at.st_mode) else 0}")
    return hashlib.blake2b("\n".join(found).encode("utf-8", "backslashreplace"), digest_size=8).hexdigest()


def _files(folder: Path) -> list[Path]:
    try:
        return sorted(Path(entry.path) for entry in os.scandir(folder) if entry.is_file(follow_symlinks=False) and not entry.name.startswith("."))
    except OSError:
        return []


def _said(run: Run, error: PellucidError) -> str:
    gone = not run.path.is_dir()
    return f"{run.path}: the run folder is gone; it was moved or deleted." if gone else str(error)


# ── what was made ────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class _Slot:
    """A place for one answer; two who ask for it at once wait for one making."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    body: bytes | None = None

    def __enter__(self) -> _Slot:
        self.lock.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.lock.release()


class _Made:
    """Answers by what they are made of, at most MOST_KEPT bytes of them."""

    def __init__(self) -> None:
        self._slots: OrderedDict[tuple[str, str, str], _Slot] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, key: tuple[str, str, str]) -> _Slot:
        """The slot of a key; older answers of the same run and view, and then those least recently asked for, are given up."""
        with self._lock:
            for other in [other for other in self._slots if other[:2] == key[:2] and other != key]:
                del self._slots[other]
            slot = self._slots.setdefault(key, _Slot())
            self._slots.move_to_end(key)
            sizes = {other: len(held.body or b"") for other, held in self._slots.items()}
            for other in list(self._slots)[:-1]:
                if sum(sizes.values()) <= MOST_KEPT and len(sizes) <= 200:
                    break
                sizes.pop(other)
                del self._slots[other]
            return slot
