"""Arrays -> figures on paper (matplotlib, no display): PNG, SVG and PDF whose bytes depend on the numbers alone.

Each function returns a `matplotlib.figure.Figure` without pyplot's global state; `save` writes it. `runs` draws the numbers of a
run, `inside` what was seen inside a model.
"""

from pellucid.figures.runs import (
    Shown,
    compare_curves,
    confusion_matrix,
    learning_curves,
    learning_rate_curve,
    overview,
    reliability_diagram,
    write_run_figures,
)
from pellucid.figures.style import COLOURS, DASHES, save

__all__ = [
    "COLOURS",
    "DASHES",
    "Shown",
    "compare_curves",
    "confusion_matrix",
    "learning_curves",
    "learning_rate_curve",
    "overview",
    "reliability_diagram",
    "save",
    "write_run_figures",
]
