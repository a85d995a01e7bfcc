"""A comparison as text, as JSON and as one offline HTML page in the report's style."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from pellucid.errors import UsageError
from pellucid.readings import Curve, curve, learning_rate
from pellucid.report import charts
from pellucid.report.page import Drawing
from pellucid.report.template import interval, render_template
from pellucid.run import Measurement, rounded
from pellucid.tables import table
from pellucid.views import Room

if TYPE_CHECKING:
    from pellucid.compare import ClassCell, ClassTable, Comparison, Row

ROOM = 1_500_000  # bytes of text that the data of the view may take
MOST_CLASSES = 40  # columns of the table of classes in HTML; more do not fit a page


def signed(value: float, unit: str) -> str:
    """A difference as readers see it: always with its sign."""
    text = rounded(abs(value), unit)
    return text if text == "n/a" else f"{'-' if value < 0 else '+'}{text}"


def short_keys(keys: Sequence[str]) -> dict[str, str]:
    """The shortest ending of each dotted key that no other one has and that says something: `train.phases.0.optimizer.lr` -> `lr`.

    A bare `name`, and an ending that begins with a place in a list, say nothing: `schedule.name`, `phases.0.epochs`.
    """
    found = {}
    for key in keys:
        parts = key.split(".")
        endings = [".".join(parts[-i:]) for i in range(1, len(parts) + 1) if not parts[-i].isdecimal()]
        found[key] = next((e for e in endings if e != "name" and sum(other == e or other.endswith(f".{e}") for other in keys) == 1), key)
    return found


# ── text ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def to_text(comparison: Comparison, *, width: int | None = None, per_class: bool = False) -> str:
    """A plain table of at most `width` columns (default: the terminal's), then one line a row about its difference.

    Settings that do not fit beside the numbers stand below them; on a very narrow terminal each row becomes a block. per_class: then also the numbers of
    single classes; UsageError where the compared number has none.
    """
    width = width or shutil.get_terminal_size((120, 24)).columns
    number = comparison.metric or "number"
    short = short_keys(comparison.settings)
    header = ["run", number, "interval", "spread", "over", "difference", "interval of difference"]
    numbers = [_numbers(row) for row in comparison.rows]
    beside = table([*header, *short.values()], [[*cells, *row.settings.values()] for cells, row in zip(numbers, comparison.rows, strict=True)])
    parts = []
    if fits(beside, width):
        parts.append(beside)
    else:
        alone = table(header, numbers)
        parts.append(alone if fits(alone, width) else "\n\n".join(block(header, cells, width) for cells in numbers))
        if comparison.settings:
            lines = [f"{row.name}: {', '.join(f'{short[key]} {value}' for key, value in row.settings.items())}" for row in comparison.rows]
            parts.append("settings\n" + "\n".join(wrapped(line, width) for line in lines))
    said = [f"{row.name}: {line}" for row in comparison.rows for line in (row.words, *row.notes) if line]
    parts += ["\n".join(wrapped(line, width) for line in lines) for lines in (said, comparison.notes) if lines]
    if per_class:
        parts.append(_class_text(comparison, width))
    return "\n\n".join(parts)


def _class_text(comparison: Comparison, width: int) -> str:
    """The table of classes, as many of them side by side as fit; * marks the best of a column."""
    found = comparison.classes
    if found is None:
        number = comparison.metric or "nothing"
        raise UsageError(f"--per-class: {number} has no numbers of single classes here; --metric miou (iou of each class) or accuracy (recall) has them")
    names = [row.name for row in comparison.rows]
    columns = [[_cell_text(row[c]) for row in found.rows] for c in range(len(found.classes))]

    def drawn(chosen: Sequence[int]) -> str:
        rows = [[name, *(columns[c][r] for c in chosen)] for r, name in enumerate(names)]
        return table([found.family, *(found.classes[c] for c in chosen)], rows)

    parts: list[str] = []
    shown: list[int] = []
    for c in range(len(found.classes)):
        if shown and not fits(drawn([*shown, c]), width):
            parts.append(drawn(shown))
            shown = []
        shown.append(c)
    parts.append(drawn(shown))
    if not all(fits(part, width) for part in parts):
        heads = [found.family, *found.classes]
        parts = [block(heads, [name, *(column[r] for column in columns)], width) for r, name in enumerate(names)]
    seeds = "mean ± sample standard deviation over seeds, " if any(cell.spread for row in found.rows for cell in row) else ""
    title = f"{found.family} of each class: {seeds}* best of its column"
    return "\n\n".join([wrapped(title, width), *parts, *(wrapped(line, width) for line in _below(comparison, found))])


def _cell_text(cell: ClassCell) -> str:
    if cell.measurement is None:
        return cell.lack
    return f"{cell.measurement}{f' ± {cell.spread}' if cell.spread else ''}{' *' if cell.best else ''}"


def _below(comparison: Comparison, found: ClassTable) -> list[str]:
    """A line for each class that some seeds of a row lack and others have, and those of the table itself."""
    partly = [
        f"{row.name}: {len(cell.values)} of {len(row.seeds)} seeds have {found.family}[{name}]; their mean is shown"
        for row, cells in zip(comparison.rows, found.rows, strict=True)
        for name, cell in zip(found.classes, cells, strict=True)
        if 0 < len(cell.values) < len(row.seeds)
    ]
    return [*partly, *found.notes]


def _numbers(row: Row) -> list[str]:
    marks = [
        word
        for word, there in (("final", row.final), ("baseline", row.baseline), (f"other {row.other}", not row.comparable), (row.status, row.status != "done"))
        if there
    ]
    name = row.name + (f" ({', '.join(marks)})" if marks else "")
    found = row.measurement
    if found is None:
        return [name, "n/a", "", "", "", "", ""]
    over = f"{len(row.values)} seeds" if len(row.values) > 1 else f"{found.n:,} {row.of}"
    difference = signed(row.difference.value, row.difference.unit) if row.difference else ""
    return [name, str(found), interval(found), str(row.spread or ""), over, difference, signed_interval(row.difference)]


def signed_interval(difference: Measurement | None) -> str:
    """`+0.0120 to +0.0453`, or an empty text where there is no interval."""
    if difference is None or difference.interval is None:
        return ""
    return " to ".join(signed(end, difference.unit) for end in difference.interval)


def block(header: Sequence[str], cells: Sequence[str], width: int) -> str:
    """A row as lines below each other, for a terminal that its table does not fit; empty cells are left out."""
    return "\n".join([cells[0], *[wrapped(f"  {name}: {cell}", width, indent="    ") for name, cell in zip(header[1:], cells[1:], strict=True) if cell]])


def fits(text: str, width: int) -> bool:
    """Whether no line is wider than `width` columns."""
    return all(len(line) <= width for line in text.splitlines())


def wrapped(line: str, width: int, indent: str = "  ") -> str:
    """The line in as many lines as it takes, those after the first indented."""
    return textwrap.fill(line, max(width, 20), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


# ── JSON ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def to_json(comparison: Comparison) -> dict[str, Any]:
    """Plain values at full precision, best row first; `difference` is None where there is no number to compare."""
    return {
        "metric": comparison.metric,
        "settings": list(comparison.settings),
        "notes": list(comparison.notes),
        "rows": [_plain(row) for row in comparison.rows],
        "classes": _plain_classes(comparison),
    }


def _plain_classes(comparison: Comparison) -> dict[str, Any] | None:
    """{family, rows: {row: {class: numbers, or in `lack` why there are none}}, notes}; None where the compared number has no numbers of single classes."""
    found = comparison.classes
    if found is None:
        return None
    rows = {
        row.name: {name: _plain_cell(cell) for name, cell in zip(found.classes, cells, strict=True)}
        for row, cells in zip(comparison.rows, found.rows, strict=True)
    }
    return {"family": found.family, "rows": rows, "notes": list(found.notes)}


def _plain_cell(cell: ClassCell) -> dict[str, Any]:
    value, spread = (m.value if m else None for m in (cell.measurement, cell.spread))
    return {"value": value, "spread": spread, "values": list(cell.values), "best": cell.best, "lack": cell.lack}


def _plain(row: Row) -> dict[str, Any]:
    found, difference = row.measurement, row.difference
    return {
        "name": row.name,
        "runs": [str(run.path) for run in row.runs],
        "seeds": list(row.seeds),
        "status": row.status,
        "final": row.final,
        "baseline": row.baseline,
        "comparable": row.comparable,
        "other": row.other,
        "settings": row.settings,
        "value": found.value if found else None,
        "unit": found.unit if found else None,
        "n": found.n if found else None,
        "values": list(row.values),
        "spread": row.spread.value if row.spread else None,
        "interval": list(found.interval) if found and found.interval else None,
        "interval_how": found.interval_how if found else "",
        "difference": difference.value if difference else None,
        "difference_interval": list(difference.interval) if difference and difference.interval else None,
        "difference_how": difference.interval_how if difference else "",
        "words": row.words,
        "notes": list(row.notes),
    }


# ── HTML ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def to_html(comparison: Comparison) -> str:
    """One offline page: the table, the validation curves of all runs over each other, each learning rate as its own figure; and the view that moves."""
    from pellucid.views.compare import of_comparison  # it reads what compare makes, which imports this module

    short = short_keys(comparison.settings)
    return render_template(
        "comparison.html",
        views={"compare": of_comparison(comparison, Room(bytes=ROOM))},
        metric=comparison.metric,
        rows=comparison.rows,
        settings=[(key, short[key]) for key in comparison.settings],
        notes=comparison.notes,
        classes=_shown_classes(comparison),
        below=_below(comparison, comparison.classes) if comparison.classes else [],
        overlays=[d for value, unit in _OVERLAID if (d := _overlay(comparison, value, unit))],
        rates=_rates(comparison),
        signed=signed,
        signed_interval=signed_interval,
    )


_OVERLAID = (("miou", "fraction"), ("accuracy", "fraction"), ("loss", "nats"))


def _shown_classes(comparison: Comparison) -> ClassTable | None:
    """The table of classes, where there is one that fits a page."""
    found = comparison.classes
    return found if found is not None and len(found.classes) <= MOST_CLASSES else None


def _overlay(comparison: Comparison, value: str, unit: str) -> Drawing | None:
    """A validation number by epoch, one colour and dash pattern a row, one line a seed."""
    drawn, named = [], []
    for i, row in enumerate(comparison.rows):
        found = [curve(run.metrics(), kind="val", value=value, against="epoch", name=row.name, style=i) for run in row.runs]
        found = [c for c in found if c.points]
        drawn += found
        named += [Curve(f"{row.name} ({len(found)} seeds)" if len(found) > 1 else row.name, [], [], i)] if found else []
    if not drawn:
        return None
    name = value.replace("miou", "mIoU")
    title = f"Validation {name}"
    y_label = name if unit == "fraction" else f"{name} ({unit})"
    return Drawing(title, charts.line_chart(drawn, title=title, x_label="epoch", y_label=y_label, unit=unit), charts.legend(named))


def _rates(comparison: Comparison) -> list[Drawing]:
    found = []
    for i, row in enumerate(comparison.rows):
        rate = learning_rate(row.runs[0].metrics(), name=row.name, style=i)
        if rate.points:
            chart = charts.line_chart([rate], title=f"Learning rate of {row.name}", x_label="step", y_label="learning rate", unit="rate")
            found.append(Drawing(row.name, chart, Markup("")))
    return found
