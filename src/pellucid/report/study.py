"""A study's table as text, Markdown and JSON, and its page: one offline HTML file in the style of a run's report."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from pellucid.readings import Curve
from pellucid.report import charts
from pellucid.report.comparison import block, fits, signed, signed_interval, wrapped
from pellucid.report.page import Drawing
from pellucid.report.settings import shown
from pellucid.report.template import interval, render_template
from pellucid.run import DONE, Measurement, rounded
from pellucid.tables import table as columns

if TYPE_CHECKING:
    from pellucid.study_table import SharedRow, StudyRow, StudyRun, StudyTable

NO_MEASURE = "no number yet"  # of a study that names none and has no finished run to take it from
MOST_LINKS = 2000  # runs of the page's list; it stays under a megabyte


def minutes(seconds: float) -> str:
    """Seconds as minutes with three digits, from 100 on whole: 0.133, 24.1, 1,250."""
    found = seconds / 60
    return rounded(found, "rate" if found < 99.95 else "count")


def listed(names: Sequence[str]) -> str:
    """`A`, `A and B`, `A, B and C`."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


@dataclass(frozen=True)
class Column:
    """A column of the table: what it is called and its cell in each row. difference: it belongs to the comparison with the baseline."""

    name: str
    cells: list[str]
    difference: bool = False


def _columns(table: StudyTable) -> list[Column]:
    """All columns but that of the setting's name."""
    rows = table.rows
    found = [
        Column("seeds", [_seeds_cell(row) for row in rows]),
        Column("mean", [str(row.row.measurement) if row.row.measurement else "n/a" for row in rows]),
        Column("spread", [str(row.row.spread or "") for row in rows]),
        Column("95 % interval", [interval(row.row.measurement).replace("–", "to") if row.row.measurement else "" for row in rows]),
        Column(f"minus {table.baseline}", [_difference(row.row.difference) for row in rows], True),
        Column("over seeds", [signed_interval(row.row.difference) for row in rows], True),
        Column("over images", [signed_interval(row.over_images) for row in rows], True),
        Column("verdict", [row.verdict for row in rows], True),
        Column("minutes", ["n/a" if row.seconds is None else minutes(row.seconds) for row in rows]),
    ]
    if table.shared:
        found.append(Column("shared, once", [_once(row, table.shared) for row in rows]))
    return found


def _seeds_cell(row: StudyRow) -> str:
    """`3`, or `2 of 3` with what became of the others."""
    there, other = len(row.row.values), sorted({run.status for run in row.runs if run.status != DONE})
    return str(there) if there == len(row.runs) else f"{there} of {len(row.runs)}{f' ({listed(other)})' if other else ''}"


def _difference(difference: Measurement | None) -> str:
    return signed(difference.value, difference.unit) if difference else ""


def _once(row: StudyRow, shared: Sequence[SharedRow]) -> str:
    """Minutes of the shared parts behind a row: `own 24.1`."""
    parts = {part.part.name: part for part in shared}
    found = [parts[name] for name in row.setting.shares if name in parts]
    return ", ".join(f"{part.part.name} {minutes(part.run.seconds) if part.run.status == DONE else 'n/a'}" for part in found)


def _marked(row: StudyRow, *, label: bool) -> str:
    marks = [word for word, there in (("baseline", row.row.baseline), ("final", row.row.final)) if there]
    name = f"{row.setting.name}: {row.setting.label}" if label and row.setting.label else row.setting.name
    return f"{name} ({', '.join(marks)})" if marks else name


# ── text ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def to_text(table: StudyTable, *, width: int | None = None) -> str:
    """A plain table of at most `width` columns (default: the terminal's), how a difference was decided, a line for each row, and notes.

    Labels stand below where they do not fit, then the comparison stands below the numbers; on a very narrow terminal each row becomes a block.
    """
    width = width or shutil.get_terminal_size((120, 24)).columns
    parts = [wrapped(f"{table.name}: {table.measure or NO_MEASURE}, mean over seeds", width), *_tables(table, width), wrapped(table.decided, width)]
    said = [f"{row.setting.name}: {row.row.words}" for row in table.rows if row.row.words and not row.row.baseline]
    parts += ["\n".join(wrapped(line, width) for line in lines) for lines in (said, table.notes) if lines]
    return "\n\n".join(parts)


def _tables(table: StudyTable, width: int) -> list[str]:
    found = _columns(table)
    labels = [wrapped(f"{row.setting.name}: {row.setting.label}", width) for row in table.rows if row.setting.label]
    below = ["\n".join(labels)] if labels else []
    for label in (True, False):
        whole = _drawn(table, found, label=label)
        if fits(whole, width):
            return [whole, *([] if label else below)]
    halves = [_drawn(table, [column for column in found if column.difference == of], label=False) for of in (False, True)]
    if all(fits(half, width) for half in halves):
        return [*halves, *below]
    header = ["setting", *(column.name for column in found)]
    rows = zip(*([_marked(row, label=True) for row in table.rows], *(column.cells for column in found)), strict=True)
    return ["\n\n".join(block(header, (wrapped(cells[0], width), *cells[1:]), width) for cells in rows)]


def _drawn(table: StudyTable, found: Sequence[Column], *, label: bool) -> str:
    rows = zip(*([_marked(row, label=label) for row in table.rows], *(column.cells for column in found)), strict=True)
    return columns(["setting", *(column.name for column in found)], list(rows))


# ── Markdown ─────────────────────────────────────────────────────────────────────────────────────────────────────


def to_markdown(table: StudyTable) -> str:
    """The table in GitHub's Markdown, for docs and papers, with the lines below it."""
    found = _columns(table)
    head = ["setting", *(column.name for column in found)]
    align = ["---", *("---" if column.name in ("verdict", "shared, once") else "---:" for column in found)]
    rows = zip(*([_marked(row, label=True) for row in table.rows], *(column.cells for column in found)), strict=True)
    lines = [f"| {' | '.join(_escaped(cell) for cell in cells)} |" for cells in [head, align, *rows]]
    said = [f"{row.setting.name}: {row.row.words}" for row in table.rows if row.row.words and not row.row.baseline]
    items = "\n".join(f"- {_escaped(line)}" for line in (*said, *table.notes))
    title = f"{_escaped(table.name)}: {f'`{table.measure}`' if table.measure else NO_MEASURE}, mean over seeds"
    return "\n\n".join([title, "\n".join(lines), _escaped(table.decided), items]).rstrip()


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is, in one line."""
    for letter in "\\|*_<`[]":
        text = text.replace(letter, f"\\{letter}")
    return " ".join(text.split())


# ── JSON ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def to_json(table: StudyTable) -> dict[str, Any]:
    """Plain values at full precision in the order of the settings; folders are relative to the study's."""
    return {
        "name": table.name,
        "measure": table.measure,
        "seeds": list(table.seeds),
        "baseline": table.baseline,
        "final": table.final,
        "decided": table.decided,
        "notes": list(table.notes),
        "rows": [_plain(row) for row in table.rows],
        "shared": [_plain_shared(part) for part in table.shared],
        "classes": _plain_classes(table),
    }


def _plain(row: StudyRow) -> dict[str, Any]:
    found, difference = row.row.measurement, row.row.difference
    return {
        "name": row.setting.name,
        "label": row.setting.label,
        "changes": row.setting.changes,
        "shares": list(row.setting.shares),
        "baseline": row.row.baseline,
        "final": row.row.final,
        "runs": [_plain_run(run) for run in row.runs],
        "value": found.value if found else None,
        "unit": found.unit if found else None,
        "n": found.n if found else None,
        "seeds": list(row.row.seeds),
        "values": list(row.row.values),
        "spread": row.row.spread.value if row.row.spread else None,
        "interval": list(found.interval) if found and found.interval else None,
        "interval_how": found.interval_how if found else "",
        "difference": difference.value if difference else None,
        "paired_seeds": list(row.paired),
        "difference_over_seeds": _plain_interval(difference),
        "difference_over_images": _plain_interval(row.over_images),
        "verdict": row.verdict,
        "words": row.row.words,
        "seconds": row.seconds,
    }


def _plain_interval(difference: Measurement | None) -> dict[str, Any] | None:
    if difference is None or difference.interval is None:
        return None
    low, high = difference.interval
    return {"low": low, "high": high, "how": difference.interval_how}


def _plain_run(run: StudyRun) -> dict[str, Any]:
    value = run.measurement.value if run.measurement else None
    return {"seed": run.seed, "status": run.status, "folder": run.folder, "value": value, "seconds": run.seconds, "error": run.error, "verified": run.verified}


def _plain_shared(part: SharedRow) -> dict[str, Any]:
    measured = {m.key: {"value": m.value, "unit": m.unit, "n": m.n, "interval": list(m.interval) if m.interval else None} for m in part.measurements}
    return {"name": part.part.name, "recipe": part.part.recipe, "behind": list(part.behind), "run": _plain_run(part.run), "measurements": measured}


def _plain_classes(table: StudyTable) -> dict[str, Any] | None:
    found = table.classes
    if found is None:
        return None
    rows = {
        row.setting.name: {
            name: {"value": cell.measurement.value if cell.measurement else None, "values": list(cell.values), "lack": cell.lack}
            for name, cell in zip(found.classes, cells, strict=True)
        }
        for row, cells in zip(table.rows, found.rows, strict=True)
    }
    return {"family": found.family, "rows": rows}


# ── HTML ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def to_html(table: StudyTable) -> str:
    """One offline page: the table and how it was decided, learning curves, the numbers of single classes, settings, shared parts and every run."""
    return render_template(
        "study.html",
        table=table,
        measure=table.measure or NO_MEASURE,
        columns=_columns(table),
        curves=_curves(table),
        dots=_dots(table),
        changes={row.setting.name: [(key, shown(value)) for key, value in row.setting.changes.items()] for row in table.rows},
        runs=[(row.setting.name, run) for row in table.rows for run in row.runs][:MOST_LINKS],
        num_runs=sum(len(row.runs) for row in table.rows),
        numbers={part.part.name: [m for m in part.measurements if "[" not in m.name] for part in table.shared},
        minutes=minutes,
        listed=listed,
        link=quote,
    )


def _curves(table: StudyTable) -> Drawing | None:
    if not table.bands or table.charted is None:
        return None
    title = f"Validation {table.charted}"
    unit = "nats" if table.charted == "loss" else "fraction"
    y_label = table.charted if unit == "fraction" else f"{table.charted} ({unit})"
    chart = charts.band_chart(table.bands, title=title, x_label="epoch", y_label=y_label, unit=unit)
    named = [Curve(f"{band.name} ({band.seeds} {'seed' if band.seeds == 1 else 'seeds'})", [], [], band.mean.style) for band in table.bands]
    return Drawing(title, chart, charts.legend(named))


def _dots(table: StudyTable) -> Drawing | None:
    if table.dots is None:
        return None
    title = f"{table.dots.family} of each class"
    return Drawing(title, charts.dot_chart(table.dots, title=title), charts.dot_legend(table.dots))
