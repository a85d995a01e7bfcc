"""Arrays -> figures on paper (matplotlib, no display): PNG, SVG and PDF whose bytes depend on the numbers alone.

Each function returns a `matplotlib.figure.Figure` without pyplot's global state; `save` writes it. `runs` draws the numbers of a
run, `pretraining` what the epochs of a pre-training say, `masks` a segmentation's and its masks, `inside` and `projections` what was seen
inside a model, `words` where a captioner looked; `overlays` puts a map on a photograph without drawing a figure.
"""

from pellucid.figures.inside import attention_sheet, bias_figure, epochs_strip, heads_sheet, positions_figure, scores_figure
from pellucid.figures.masks import confidence_sheet, error_map, iou_bars, mask_curves, masks_sheet, write_mask_figures, write_mask_sheets
from pellucid.figures.overlays import overlay
from pellucid.figures.pretraining import chart_figure, collapse_figure, write_pretraining_figures
from pellucid.figures.projections import projection_figure
from pellucid.figures.runs import (
    Shown,
    compare_curves,
    confusion_matrix,
    learning_curves,
    learning_rate_curve,
    mistakes_gallery,
    overview,
    reliability_diagram,
    write_run_figures,
)
from pellucid.figures.style import COLOURS, DASHES, save
from pellucid.figures.words import word_overlays, word_scores_figure, words_strip, write_caption_figures, write_word_strips

__all__ = [
    "COLOURS",
    "DASHES",
    "Shown",
    "attention_sheet",
    "bias_figure",
    "chart_figure",
    "collapse_figure",
    "compare_curves",
    "confidence_sheet",
    "confusion_matrix",
    "epochs_strip",
    "error_map",
    "heads_sheet",
    "iou_bars",
    "learning_curves",
    "learning_rate_curve",
    "mask_curves",
    "masks_sheet",
    "mistakes_gallery",
    "overlay",
    "overview",
    "positions_figure",
    "projection_figure",
    "reliability_diagram",
    "save",
    "scores_figure",
    "word_overlays",
    "word_scores_figure",
    "words_strip",
    "write_caption_figures",
    "write_mask_figures",
    "write_mask_sheets",
    "write_pretraining_figures",
    "write_run_figures",
    "write_word_strips",
]
