"""Figures on paper of several runs: those that lie in a folder, its seeds, and a study."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pellucid.compare import compare, expand
from pellucid.paper_asked import Asked
from pellucid.readings import Curve, curve
from pellucid.run import Run
from pellucid.study_record import StudyFolder
from pellucid.views.compare import CURVES

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def runs_in(folder: Path) -> list[Run]:
    """The runs that lie in a folder, those of its seeds where it has seeds.json; none of a run's own folder."""
    if (folder / "seeds.json").is_file():
        return expand([folder])
    if (folder / "run.json").is_file() or not folder.is_dir():
        return []
    return [Run(path) for path in sorted(folder.iterdir()) if (path / "run.json").is_file()]


def runs_curves(*wanted: str) -> tuple[Callable[[list[Run]], bool], Callable[[list[Run], Asked], Figure]]:
    """Whether runs have a curve of validation or training (`val` or `train`), and its figure: the first of CURVES that one of them has."""

    def lines(runs: list[Run]) -> tuple[str, list[Curve]]:
        rows = compare(runs).rows
        for kind, value, unit in CURVES:
            if kind in wanted:
                found = [
                    curve(run.metrics(), kind=kind, value=value, against="epoch", name=row.name, style=i) for i, row in enumerate(rows) for run in row.runs
                ]
                if any(one.points for one in found):
                    words = value.replace("_", " ").replace("miou", "mIoU").replace("cider", "CIDEr-D")
                    return f"{'validation' if kind == 'val' else 'training'} {words}{' (nats)' if unit == 'nats' else ''}", [one for one in found if one.points]
        return "", []

    def draw(runs: list[Run], asked: Asked) -> Figure:
        from pellucid.figures import compare_curves

        y_label, found = lines(runs)
        return compare_curves(found, y_label=y_label, width=asked.inches)

    return lambda runs: bool(lines(runs)[1]), draw


def study_curves_figure(folder: StudyFolder, asked: Asked) -> Figure:
    from pellucid.figures.study import study_curves
    from pellucid.study_table import study_table

    table = study_table(folder)
    return study_curves(table.bands, y_label=f"validation {table.charted}", width=asked.inches)


def study_classes_figure(folder: StudyFolder, asked: Asked) -> Figure:
    from pellucid.figures.study import class_dots
    from pellucid.study_table import study_table

    dots = study_table(folder).dots
    assert dots is not None
    return class_dots(dots, width=asked.inches)


def study_has(what: str) -> Callable[[Any], bool]:
    def there(folder: StudyFolder) -> bool:
        from pellucid.study_table import study_table

        return bool(getattr(study_table(folder), what))

    return there
