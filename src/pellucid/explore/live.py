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
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pellucid.errors import MissingError, PellucidError, RunError
from pellucid.findings import ARRAYS, FINDINGS, load_findings
from pellucid.records import unpacked_bytes
from pellucid.run import Run, seed_folders
from pellucid.study_record import StudyFolder
from pellucid.views import EXPLORER, FULLER, View, encoding, to_json, views
from pellucid.views.positions import has_positions
from pellucid.views.snapshot_planes import has_planes

MOST_KEPT = 96_000_000  # bytes of views that are held, the least recently asked for given up first
MOST_ANSWER = EXPLORER.bytes + 8_000_000  # bytes of one view, or of a comparison
# Bytes of one file of a run that is read, by the ending of its name; files of other kinds (weights, figures) are not read for what is shown.
MOST_BYTES = {".json": 32_000_000, ".yaml": 2_000_000, ".jsonl": 64_000_000, ".csv": 100_000_000, ".webp": 64_000_000, ".png": 64_000_000}
MOST_BYTES |= {".jpg": 64_000_000, ".npz": 1 << 30}
MOST_ARRAYS = 1 << 28  # bytes of the arrays of one .npz file, unpacked
MOST_PREDICTED = 1 << 30  # of those of a file of predictions/
MOST_COMPARED = 200  # runs of one comparison
LIVE = ("overview", "curves")  # views of what every epoch adds; the overview has the curves in it
# What a view is made of, as patterns: it is offered where one of them is there, until its builder says that there is nothing to show.
SOURCES = {
    "overview": ("run.json",),
    "features": ("inside/findings.json", "snapshots/epoch-*.npz"),  # the latter while a run trains
    "attention": ("inside/findings.json",),
    "positions": ("inside/findings.json",),
    "masks": ("inside/masks.json",),
    "words": ("inside/words.json",),
    "mistakes": ("predictions/*.npz",),  # the folder is there from the beginning
}
FOUND = ("features", "attention", "positions")  # views of findings.json, which says which of them there are
GROWING = ("run.json", "metrics.jsonl")  # what every epoch changes
LISTED = ("run.json", "resolved.yaml")  # what the list is made of

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
        self._read: dict[Path, tuple[str, dict[str, Any]]] = {}  # of a run: the version that was read, and what the list says of it
        self._made = _Made()
        self._lock = threading.Lock()  # of the list, which several may ask for at once
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
        with self._lock:
            self.refresh()
            runs = list(self.runs)  # others may begin as soon as somebody else asks
            entries = [self._entry(number, run) for number, run in enumerate(runs)]
        repeated = {name for name, n in Counter(run.name for run in runs).items() if n > 1}
        for entry, run in zip(entries, runs, strict=True):
            if run.name in repeated:  # the seeds of two settings
                entry["name"] = f"{run.path.resolve().parent.name}/{run.name}"
        return entries

    def _entry(self, number: int, run: Run) -> dict[str, Any]:
        at = version(run)
        if self._read.get(run.path, ("",))[0] != at:  # a failure costs no more than what can be read
            self._read[run.path] = at, self._summary(run)
        entry = {"id": number, "name": run.name, **self._read[run.path][1]}
        if "error" in entry:
            return entry | {"error": _said(run, entry["error"]), "views": [], "version": "", "kept": ""}
        return entry | {"views": [name for name in SOURCES if self._offered(number, name, run)], "version": at, "kept": version(run, kept=True)}

    def _summary(self, run: Run) -> dict[str, Any]:
        """What the list says of a run as it is now; `error` where it cannot be read."""
        entry: dict[str, Any] = {"task": "", "status": "unreadable", "headline": None, "epoch": 0, "epochs": 0}
        try:
            for name in LISTED:
                plain(run.path / name, run.path)
            record = run.record
            first = next(iter(record.measurements), None)
            headline = first and {**(encoding.number(first) or {}), "title": first.title}
            return entry | {"task": record.task, "status": record.status, "headline": headline, "epoch": record.epoch, "epochs": run.recipe.epochs}
        except PellucidError as error:
            return entry | {"error": str(error)}
        except OSError as error:
            return entry | {"error": f"{run.path}: {error.strerror}"}

    def _offered(self, number: int, name: str, run: Run) -> bool:
        """Whether there may be something to show in a view: its file is there, and neither findings nor builder say that it is nothing."""
        there = any(found for pattern in SOURCES[name] for found in run.path.glob(pattern))
        if not there or (number, name, version(run, kept=name not in LIVE)) in self._empty:
            return False
        return name not in FOUND or name in self._found(run)

    def _found(self, run: Run) -> Collection[str]:
        """Which of FOUND a run can show; all of them where its findings cannot be read, which the view then says."""
        at = version(run, kept=True)
        known = self._findings.get(run.path)
        if known is None or known[0] != at:
            try:
                for path in (run.inside / FINDINGS, run.inside / ARRAYS, run.snapshots / "probe.npz"):
                    plain(path, run.path)
                known = at, _held(run)
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

        def make() -> bytes:
            made = builders[name](run, EXPLORER) or (_features_so_far(run) if name == "features" else None)
            made = made and made | {"notes": [note.replace(FULLER, HERE_TOO) for note in made["notes"]]}
            if made is None:
                self._empty.add((int(number), name, at))
            return _within(as_bytes({"view": made, "version": at}), f"{run.path}: {name}")

        return self._made.answer((str(int(number)), name, at), [run], make)

    def comparison(self, numbers: str) -> bytes:
        """The JSON of the view that lays runs side by side, `numbers` as "0,2"; all of them where it is empty.

        Runs that cannot be read are left out, and named in its notes; RunError where none is left.
        """
        chosen = list(dict.fromkeys(self.of(number) for number in numbers.split(","))) if numbers else list(self.runs)
        if len(chosen) > MOST_COMPARED:
            raise MissingError(f"At most {MOST_COMPARED} runs are laid side by side, these are {len(chosen)}.")
        at = " ".join(version(run) for run in chosen)
        left_out = _unsafe(chosen)
        make = lambda: _within(as_bytes({"view": _side_by_side(chosen, left_out), "version": at}), f"{len(chosen)} runs side by side")  # noqa: E731
        return self._made.answer(("", ",".join(str(run.path) for run in chosen), "\n".join([at, *left_out.values()])), [], make)


def _features_so_far(run: Run) -> View | None:
    from pellucid.views.features import so_far

    return so_far(run, EXPLORER)


def _held(run: Run) -> list[str]:
    """Which of FOUND the findings of a run hold; of a run without findings yet, features where its snapshots have some."""
    if not (run.inside / FINDINGS).is_file():
        return ["features"] if has_planes(run) else []
    found = load_findings(run.inside)
    has = {"features": found.projections, "attention": found.images, "positions": has_positions(run.inside, found)}
    return [name for name in FOUND if has[name]]


def _unsafe(runs: Sequence[Run]) -> dict[Path, str]:
    """{folder: why} of the runs that are not `safe`."""
    found = {}
    for run in runs:
        try:
            safe(run)
        except RunError as error:
            found[run.path] = str(error)
    return found


def _side_by_side(runs: Sequence[Run], unsafe: Mapping[Path, str]) -> View:
    """The view of those of the runs that can be read; its notes name the others. RunError where none is left; a failure that is not of one run is raised."""
    from pellucid.views.compare import of_runs

    left_out = dict(unsafe)
    while there := [run for run in runs if run.path not in left_out]:
        try:
            view = of_runs(there, EXPLORER)
        except (PellucidError, OSError) as error:
            words = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
            damaged = [run for run in there if words.startswith((f"{run.path}:", f"{run.path}{os.sep}"))]  # its folder, or a file in it
            if not damaged:
                raise
            left_out[damaged[0].path] = words
        else:
            return view | {"notes": [*(f"Left out, as it cannot be read: {words}" for words in left_out.values()), *view["notes"]]}
    raise RunError("\n".join(["None of these runs can be read.", *left_out.values()]))


def as_bytes(found: dict[str, Any]) -> bytes:
    """JSON; half a character of a file name that is no valid Unicode stays the escape that it is."""
    return to_json(found).encode("utf-8", "backslashreplace")


def _runs_of(path: Path) -> Iterator[Run]:
    """The runs of a run folder, a folder of seeds or a study."""
    for name in ("seeds.json", "study.json"):
        plain(path / name, path)
    if (path / "seeds.json").is_file():
        folders = [path / name for name in seed_folders(path)]
        yield from (Run(folder) for folder in folders if (folder / "run.json").is_file() and _stays(folder, path))
    elif (path / "study.json").is_file():
        study = StudyFolder(path)
        found = [run for setting in study.record.settings for run in study.runs(setting.name).values()]
        yield from (run for run in [*study.shared().values(), *found] if _stays(run.path, path))
    else:
        yield Run(path)


def _within(body: bytes, what: str) -> bytes:
    """An answer that is no larger than MOST_ANSWER; RunError for others."""
    if len(body) > MOST_ANSWER:
        raise RunError(f"{what}: takes {len(body):,} bytes, at most {MOST_ANSWER:,} are shown. The files hold more than a run leaves, or the runs are many.")
    return body


def _stays(path: Path, folder: Path) -> bool:
    """Whether a path, links followed, lies in a folder. RunError for a link that leads round in circles."""
    return Path(_followed(path)).is_relative_to(_followed(folder))


def _followed(path: Path) -> str:
    try:
        return os.path.realpath(path, strict=True)
    except FileNotFoundError:
        return os.path.realpath(path)
    except OSError as error:
        raise RunError(f"{path}: a link that leads nowhere: {error.strerror}. Remove it.") from None


def safe(run: Run) -> Run:
    """The run, none of whose files leads out of its folder, is anything but a file, or is too large. RunError names the first; of a folder that is gone too."""
    root = Path(_followed(run.path))
    waiting = [root]
    while waiting:
        try:
            entries = list(os.scandir(waiting.pop()))
        except OSError as error:
            raise RunError(f"{run.path}: the run folder cannot be read: {error.strerror}. Was it moved or deleted?") from None
        for entry in entries:
            path = Path(entry.path)
            if entry.is_dir(follow_symlinks=False):
                waiting.append(path)
            else:
                plain(path, root, entry)
    return run


def plain(path: Path, root: Path, at: os.DirEntry[str] | None = None) -> None:
    """RunError unless a path is an ordinary file inside `root`, or a link to one, of at most the size of its kind. A folder, or nothing, is fine too."""
    try:
        if path.is_symlink():
            if not _stays(path, root):
                raise RunError(f"{path}: a link that leads out of the run folder; the explorer reads nothing outside. Put the file itself there.")
            found = path.stat()
        else:
            found = path.lstat() if at is None else at.stat(follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return
    if stat.S_ISDIR(found.st_mode):
        return
    if not stat.S_ISREG(found.st_mode):
        raise RunError(f"{path}: expected a file; the explorer reads nothing else in a run folder. Remove it.")
    most = MOST_BYTES.get(path.suffix)
    if most is not None and found.st_size > most:
        raise RunError(f"{path}: has {found.st_size:,} bytes, expected at most {most:,}; the file was changed")
    if path.suffix == ".npz":
        size, most = unpacked_bytes(path), MOST_PREDICTED if path.parent.name == "predictions" else MOST_ARRAYS
        if size > most:
            raise RunError(f"{path}: holds arrays of {size:,} bytes, expected at most {most:,}; the file was changed")


def version(run: Run, *, kept: bool = False) -> str:
    """A text that changes when the run does. kept: of what is kept of a run (snapshots, findings, predictions) alone, not of what every epoch adds."""
    found = []
    places = [run.snapshots, run.inside, run.path / "predictions", run.thumbnails]
    fixed = [run.path / "resolved.yaml", run.path / "data.json", *_files(run.path / "samples")]
    growing = [] if kept else [run.path / name for name in GROWING]
    names = [run.verify_file, *fixed, *places, *(file for place in places[:3] for file in _files(place)), *growing]
    for path in names:
        try:
            at = path.lstat()
        except OSError:
            continue
        found.append(path.name if stat.S_ISDIR(at.st_mode) else f"{path.name} {at.st_mode} {at.st_mtime_ns} {at.st_size}")
    return hashlib.blake2b("\n".join(found).encode("utf-8", "backslashreplace"), digest_size=8).hexdigest()


def _files(folder: Path) -> list[Path]:
    try:
        return sorted(Path(entry.path) for entry in os.scandir(folder) if not entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."))
    except OSError:
        return []


def _said(run: Run, error: str) -> str:
    return error if run.path.is_dir() else f"{run.path}: the run folder is gone; it was moved or deleted."


# ── what was made ────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class _Slot:
    """A place for one answer; two who ask for it at once wait for one making."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    body: bytes | None = None
    failed: str = ""  # why it could not be made

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

    def answer(self, key: tuple[str, str, str], runs: Sequence[Run], make: Callable[[], bytes]) -> bytes:
        """The answer of a key, of these runs, which are safe while it is made; RunError again, without making it, where it could not be."""
        with self._of(key) as slot:
            if slot.body is None:
                for run in runs:
                    safe(run)
                if slot.failed:
                    raise RunError(slot.failed)
                try:
                    slot.body = make()
                except RunError as error:
                    slot.failed = str(error)
                    raise
            return slot.body

    def _of(self, key: tuple[str, str, str]) -> _Slot:
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
