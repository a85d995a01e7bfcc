"""The folder that a study leaves, as typed records: the only code that knows its paths; needs no torch.

study.yaml    as the user wrote it              shared/<name>/                the run of a part that settings have in common
study.json    settings, seeds, where runs lie   runs/<setting>/seed-<seed>/   a run for each setting and seed
table.txt, table.md, table.json                 study.html, figures/          the table and its page
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from pellucid.errors import RunError
from pellucid.files import replacing
from pellucid.records import CLOSED, read_record, write_json
from pellucid.run import Run


@dataclass(frozen=True)
class SettingRecord:
    """One row of the table. changes: what it sets otherwise than the base recipe, {key of the recipe: value}. shares: names of shared parts behind it."""

    __pydantic_config__ = CLOSED

    name: str
    label: str
    changes: dict[str, Any] = field(default_factory=dict)
    shares: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class SharedRecord:
    """A run that several settings build on. recipe: its file as the study names it."""

    __pydantic_config__ = CLOSED

    name: str
    recipe: str
    changes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StudyRecord:
    """What study.json holds. measure: `split/name` of the number that is reported. baseline, final: names of settings; final None where none is marked."""

    __pydantic_config__ = CLOSED

    pellucid: str
    name: str
    recipe: str
    measure: str
    seeds: list[int]
    settings: list[SettingRecord]
    baseline: str
    final: str | None = None
    shared: list[SharedRecord] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class StudyFolder:
    """A study's folder, opened for reading; RunError where there is none."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.record_file.is_file():
            raise RunError(f"{self.path}: expected the folder of a study (one with study.json in it). `pellucid study FILE` makes one.")

    @classmethod
    def create(cls, path: Path, record: StudyRecord, text: str) -> StudyFolder:
        """Make the folder, or write record and text of one that is there anew."""
        path.mkdir(parents=True, exist_ok=True)
        write_json(path / "study.json", record)  # first: it is what says that the folder is a study's
        with replacing(path / "study.yaml") as temporary:
            temporary.write_text(text, encoding="utf-8")
        return cls(path)

    @property
    def record_file(self) -> Path:
        return self.path / "study.json"

    @property
    def record(self) -> StudyRecord:
        return read_record(self.record_file, TypeAdapter(StudyRecord))

    @property
    def page(self) -> Path:
        return self.path / "study.html"

    @property
    def figures(self) -> Path:
        return self.path / "figures"

    def run_folder(self, setting: str, seed: int) -> Path:
        return self.path / "runs" / setting / f"seed-{seed}"

    def shared_folder(self, name: str) -> Path:
        return self.path / "shared" / name

    def runs(self, setting: str) -> dict[int, Run]:
        """{seed: run} of a setting, those that were begun."""
        folders = {seed: self.run_folder(setting, seed) for seed in self.record.seeds}
        return {seed: Run(folder) for seed, folder in folders.items() if (folder / "run.json").is_file()}

    def shared(self) -> dict[str, Run]:
        """{name: run} of the shared parts that were begun."""
        folders = {part.name: self.shared_folder(part.name) for part in self.record.shared}
        return {name: Run(folder) for name, folder in folders.items() if (folder / "run.json").is_file()}
