"""Arrays -> figures on paper (matplotlib, no display): PNG, SVG and PDF whose bytes depend on the numbers alone.

Each function returns a `matplotlib.figure.Figure` without pyplot's global state; `save` writes it. `runs` draws the numbers of a
run, `inside` and `projections` what was seen inside a model; `overlays` puts a map on a photograph without drawing a figure.
"""

from pellucid.figures.inside import attention_sheet, bias_figure, epochs_strip, heads_sheet, positions_figure, scores_figure
from pellucid.figures.overlays import overlay
from pellucid.figures.projections import projection_figure
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
    "attention_sheet",
    "bias_figure",
    "compare_curves",
    "confusion_matrix",
    "epochs_strip",
    "heads_sheet",
    "learning_curves",
    "learning_rate_curve",
    "overlay",
    "overview",
    "positions_figure",
    "projection_figure",
    "reliability_diagram",
    "save",
    "scores_figure",
    "write_run_figures",
]
