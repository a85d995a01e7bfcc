"""A run at a glance: its headline with what stands behind it, facts, alarms, every number, settings, machine, curves.

The view holds the run's name, task and status; headline (a number, or null), in words `what`, and numbers; promise {kind, text, failed, lines}; facts and
environment [[name, text]]; alarms [{title, text}] and alerts [text]; progress {text, share} of a run that is training, or null; decided, what the run settled
by itself; settings [{name, settings: [{key, value, default, changed, meaning}]}]; curves, that view, or null; made and verify, commands.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pellucid.errors import RunError
from pellucid.recipe import Recipe
from pellucid.run import DONE, RUNNING, DataRecord, Run, RunRecord, rounded
from pellucid.views import Room, View, curves, encoding

if TYPE_CHECKING:
    from pellucid.report.settings import Group


@dataclass(frozen=True)
class Promise:
    """What stands behind the headline number. `kind` is verified, mismatch, open or unfinished; `lines` are verify's own,
    `failed` those that name a mismatch or say why there is no number."""

    kind: str
    text: str
    failed: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)


def build(run: Run, room: Room) -> View:
    """The view of a run, finished or not. RunError names a file that cannot be read."""
    from pellucid.report import settings
    from pellucid.report.pretraining import alarms

    record, recipe = run.record, run.recipe
    data = run.data if run.has_data else None
    numbers = [encoding.number(m) for m in record.measurements]
    return {
        "title": f"{run.name}: {record.task}",
        "notes": [],
        "name": run.name,
        "task": record.task,
        "status": record.status,
        "headline": numbers[0] if numbers else None,
        "what": record.measurements[0].title if numbers else "",
        "numbers": numbers,
        "promise": dataclasses.asdict(read_promise(run, record)),
        "facts": facts(recipe, record, data),
        "alarms": [dataclasses.asdict(alarm) for alarm in alarms(record)],
        "alerts": alerts(run, record),
        "progress": _progress(record, recipe),
        "decided": record.notes,
        "settings": [_group(group) for group in settings.groups(recipe)],
        "environment": environment(run) or [],
        "curves": curves.build(run, room),
        "made": shlex.join(record.command),
        "verify": shlex.join(["pellucid", "verify", str(run.path)]),
    }


def read_promise(run: Run, record: RunRecord) -> Promise:
    """What verify.json says of the run; nothing is verified here."""
    if record.status != DONE:
        text = f"This run is not finished: it is {record.status} at {_reached(record)}."
        return Promise("unfinished", text, [record.error] if record.error else [])
    found = _verification(run)
    if found is None:
        return Promise("open", f"Not verified yet: {shlex.join(['pellucid', 'verify', str(run.path)])}")
    when, kind = found.get("when", "an unknown date"), found.get("class")
    lines = [str(line) for line in found.get("lines", [])]
    if found["result"] == "verified":
        return Promise("verified", f"Verified ({kind}) on {when}" if kind else f"Verified on {when}", lines=lines)
    failed = [line for line in lines if line.startswith("MISMATCH")]
    return Promise("mismatch", f"Verification found a mismatch on {when}", failed, lines)


def facts(recipe: Recipe, record: RunRecord, data: DataRecord | None) -> list[tuple[str, str]]:
    """(name, text) of what a reader asks first."""
    found = [("model", recipe.model.name)]
    if record.num_params:
        found.append(("parameters", rounded(record.num_params, "count")))
    if data is not None:
        found.append(("data", f"{data.source}, " + (f"{len(data.classes):,} classes" if data.vocabulary is None else f"{data.vocabulary.size:,} tokens")))
    found.append(("epochs", f"{record.epoch} of {recipe.epochs}"))
    found.append(("weights", record.selected))
    found.append(("seed", str(recipe.seed)))
    return found


def alerts(run: Run, record: RunRecord) -> list[str]:
    """What a finished run has lost."""
    if record.status != DONE:
        return []
    needed = ["data.json", "environment.json", "metrics.jsonl"]
    found = [f"{name} is missing: the run is not whole or was changed." for name in needed if not (run.path / name).is_file()]
    splits = sorted({m.split for m in record.measurements} - {"train"})
    return found + [f"predictions of {split} are missing: its numbers cannot be recomputed." for split in splits if not run.predictions_file(split).is_file()]


def environment(run: Run) -> list[tuple[str, str]] | None:
    """(name, text) of every value, nested names joined by a dot; None where it was not recorded."""
    return _flat(run.environment) if (run.path / "environment.json").is_file() else None


def _verification(run: Run) -> dict[str, Any] | None:
    path = run.verify_file
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path}: not readable as JSON: {error}. `pellucid verify {run.path}` writes it anew.") from None
    if not isinstance(found, dict) or found.get("result") not in ("verified", "mismatch"):
        raise RunError(f"{path}: expected a result that is verified or mismatch. `pellucid verify {run.path}` writes it anew.")
    if not isinstance(found.get("lines", []), list):
        raise RunError(f"{path}: expected a list of lines. `pellucid verify {run.path}` writes it anew.")
    return found


def _reached(record: RunRecord) -> str:
    return f"epoch {record.epoch}, step {record.step:,}" + (f" of {record.total_steps:,}" if record.total_steps else "")


def _progress(record: RunRecord, recipe: Recipe) -> dict[str, Any] | None:
    if record.status != RUNNING:
        return None
    share = record.step / record.total_steps if record.total_steps else record.epoch / max(recipe.epochs, 1)
    text = f"epoch {record.epoch} of {recipe.epochs}, step {record.step:,}" + (f" of {record.total_steps:,}" if record.total_steps else "")
    return {"text": text, "share": share}


def _group(group: Group) -> dict[str, Any]:
    return {"name": group.name, "settings": [{**dataclasses.asdict(setting), "changed": setting.changed} for setting in group.settings]}


def _flat(values: dict[str, Any]) -> list[tuple[str, str]]:
    from pellucid.report.settings import shown

    found: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, dict):
            found += [(f"{name}.{below}", text) for below, text in _flat(value)]
        else:
            found.append((name, shown(value)))
    return found
