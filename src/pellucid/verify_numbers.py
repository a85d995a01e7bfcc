"""Reported numbers beside those that `verify` recomputed, as lines; of masks and of features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pellucid.run import Measurement, rounded

EXACT = 1e-6  # two correct float64 computations of one number from the same values
Line = tuple[str, bool, str]  # what was compared, whether it held, a line for people


def number_lines(
    numbers: Mapping[str, float], measurements: Sequence[Measurement], split: str, path: str, tolerance: float, *, slack: Mapping[str, float] | None = None
) -> list[Line]:
    """A line for each measurement of a split, and one for those that are missing. slack: share of the n images at a tie, by which a number may differ too."""
    lines: list[Line] = []
    if absent := sorted(numbers.keys() - {m.name for m in measurements}):
        lines.append((f"numbers {split}", False, f"MISMATCH run.json: {', '.join(absent)} of {split} is missing ({path})"))
    for m in measurements:
        what = f"number {m.key} {path}"
        if m.name not in numbers:
            lines.append((what, False, f"MISMATCH {m.key} {path}: there is no such number to recompute"))
            continue
        value, tied = numbers[m.name], (slack or {}).get(m.name, 0.0)
        ok = bool(abs(value - m.value) <= max(tolerance, tied + EXACT if tied else 0.0))
        ties = f" ({round(tied * m.n)} of {m.n:,} images at a tie)" if tied else ""
        said = f"reported {rounded(m.value, m.unit)}, recomputed {rounded(value, m.unit)}{ties}"
        lines.append((what, ok, f"{'ok' if ok else 'MISMATCH'} {m.key} {path}: {said}"))
    return lines
