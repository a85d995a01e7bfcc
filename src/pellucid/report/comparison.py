"""A comparison as text, as JSON and as one offline HTML page in the report's style."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from pellucid.readings import Curve, curve, learning_rate
from pellucid.report import charts
from pellucid.report.page import Drawing
from pellucid.report.template import interval, render_template
from pellucid.run import Measurement, rounded
from pellucid.tables import table

if TYPE_CHECKING:
    from pellucid.compare import Comparison, Row


def signed(value: float, unit: str) -> str:
    """A difference as readers see it: always with its sign."""
    text = rounded(abs(value), unit)
    return text if text == "n/a" else f"{'-' if value < 0 else '+'}{text}"


def short_keys(keys: Sequence[str]) -> dict[str, str]:
    """The shortest ending of each dotted key that no other one has: `train.phases.0.optimizer.lr` -> `lr`."""
    found = {}
    for key in keys:
        parts = key.split(".")
        endings = [".".join(parts[-i:]) for i in range(1, len(parts) + 1)]
        found[key] = next(e for e in endings if e == key or sum(other == e or other.endswith(f".{e}") for other in keys) == 1)
    return found


# ── text ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def to_text(comparison: Comparison, *, width: int | None = None) -> str:
    """A plain table of at most `width` columns (default: the terminal's), then one line a row about its difference.

    Settings that do not fit beside the numbers stand below them; on a very narrow terminal each row becomes a block.
    """
    width = width or shutil.get_terminal_size((120, 24)).columns
    number = comparison.metric or "number"
    short = short_keys(comparison.settings)
    header = ["run", number, "interval", "spread", "over", "difference", "interval of difference"]
    numbers = [_numbers(row) for row in comparison.rows]
    beside = table([*header, *short.values()], [[*cells, *row.settings.values()] for cells, row in zip(numbers, comparison.rows, strict=True)])
    parts = []
    if _fits(beside, width):
        parts.append(beside)
    else:
        alone = table(header, numbers)
        parts.append(alone if _fits(alone, width) else "\n\n".join(_block(header, cells, width) for cells in numbers))
        if comparison.settings:
            lines = [f"{row.name}: {', '.join(f'{short[key]} {value}' for key, value in row.settings.items())}" for row in comparison.rows]
            parts.append("settings\n" + "\n".join(_wrapped(line, width) for line in lines))
    said = [f"{row.name}: {line}" for row in comparison.rows for line in (row.words, *row.notes) if line]
    parts += ["\n".join(_wrapped(line, width) for line in lines) for lines in (said, comparison.notes) if lines]
    return "\n\n".join(parts)


def _numbers(row: Row) -> list[str]:
    marks = [
        word
        for word, there in (("final", row.final), ("baseline", row.baseline), ("other data", not row.comparable), (row.status, row.status != "done"))
        if there
    ]
    name = row.name + (f" ({', '.join(marks)})" if marks else "")
    found = row.measurement
    if found is None:
        return [name, "n/a", "", "", "", "", ""]
    over = f"{len(row.values)} seeds" if len(row.values) > 1 else f"{found.n:,} samples"
    difference = signed(row.difference.value, row.difference.unit) if row.difference else ""
    return [name, str(found), interval(found), str(row.spread or ""), over, difference, _signed_interval(row.difference)]


def _signed_interval(difference: Measurement | None) -> str:
    if difference is None or difference.interval is None:
        return ""
    return " to ".join(signed(end, difference.unit) for end in difference.interval)


def _block(header: Sequence[str], cells: Sequence[str], width: int) -> str:
    return "\n".join([cells[0], *[_wrapped(f"  {name}: {cell}", width, indent="    ") for name, cell in zip(header[1:], cells[1:], strict=True) if cell]])


def _fits(text: str, width: int) -> bool:
    return all(len(line) <= width for line in text.splitlines())


def _wrapped(line: str, width: int, indent: str = "  ") -> str:
    return textwrap.fill(line, max(width, 20), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


# ── JSON ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def to_json(comparison: Comparison) -> dict[str, Any]:
    """Plain values at full precision, best row first; `difference` is None where there is no number to compare."""
    return {
        "metric": comparison.metric,
        "settings": list(comparison.settings),
        "notes": list(comparison.notes),
        "rows": [_plain(row) for row in comparison.rows],
    }


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
    """One offline page: the table, the validation curves of all runs over each other, each learning rate as its own figure."""
    short = short_keys(comparison.settings)
    return render_template(
        "comparison.html",
        metric=comparison.metric,
        rows=comparison.rows,
        settings=[(key, short[key]) for key in comparison.settings],
        notes=comparison.notes,
        overlays=[d for d in (_overlay(comparison, "accuracy", "fraction"), _overlay(comparison, "loss", "nats")) if d],
        rates=_rates(comparison),
        signed=signed,
        signed_interval=_signed_interval,
    )


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
    title = f"Validation {value}"
    y_label = value if unit == "fraction" else f"{value} ({unit})"
    return Drawing(title, charts.line_chart(drawn, title=title, x_label="epoch", y_label=y_label, unit=unit), charts.legend(named))


def _rates(comparison: Comparison) -> list[Drawing]:
    found = []
    for i, row in enumerate(comparison.rows):
        rate = learning_rate(row.runs[0].metrics(), name=row.name, style=i)
        if rate.points:
            chart = charts.line_chart([rate], title=f"Learning rate of {row.name}", x_label="step", y_label="learning rate", unit="rate")
            found.append(Drawing(row.name, chart, Markup("")))
    return found
