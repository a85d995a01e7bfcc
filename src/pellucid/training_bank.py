"""The training images that a run keeps to compare with: their features by the final weights, their pictures, and those nearest to each mistake.

The bank is evenly drawn over the classes; images are seen as an evaluation sees them. Similarities are cosines of the features as they are kept, so that who
reads the run finds the same neighbours. A pre-training keeps the bank for new photographs; its report has neighbours of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

import pellucid
from pellucid.atlas import write_atlas
from pellucid.errors import PellucidError
from pellucid.neighbour_findings import (
    NEIGHBOUR_ARRAYS,
    NEIGHBOUR_ATLAS,
    NEIGHBOUR_SIDE,
    NEIGHBOURS,
    KeptNeighbours,
    Near,
    NeighbourFindings,
    how_compared,
    nearest_kept,
)
from pellucid.snapshots import evenly, features_of, halved, viewed

if TYPE_CHECKING:
    from pellucid.prepare import Training

SPLIT = "train"


def keep_bank(t: Training, module: nn.Module, mistakes: Mapping[str, Sequence[int]]) -> None:
    """Write neighbours.* into the run's inside/ folder where its recipe asks for it. mistakes: {split: rows whose neighbours are looked for}.

    Numbers of the task are kept whatever happens here: what cannot be kept is noted.
    """
    for name in (NEIGHBOURS, NEIGHBOUR_ARRAYS, NEIGHBOUR_ATLAS):
        (t.run.inside / name).unlink(missing_ok=True)
    if t.recipe.inside is None or not t.recipe.inside.neighbours:
        return
    try:
        _keep(t, module, mistakes)
    except (PellucidError, RuntimeError, ValueError, OSError, MemoryError) as error:
        kind = "" if isinstance(error, PellucidError) else f"{type(error).__name__}: "
        t.record.note(f"no training images are kept to compare with: {kind}{error or 'memory ran out'}")


def _keep(t: Training, module: nn.Module, mistakes: Mapping[str, Sequence[int]]) -> None:
    assert t.recipe.inside is not None
    train = t.dataset.splits[SPLIT]
    rows = evenly(train.labels, t.recipe.inside.neighbours)
    t.runtime.place(module).eval()
    found = {SPLIT: features_of(t, module, SPLIT, rows)}
    found |= {split: features_of(t, module, split, np.array(own, np.int64)) for split, own in mistakes.items() if len(own)}
    if bad := [split for split, features in found.items() if not np.isfinite(features).all()]:
        raise ValueError(f"features of {bad[0]} are NaN or infinite")
    whole = halved(t, np.concatenate(list(found.values())), "training images to compare with")  # one kind for all, so that they can be compared
    parts = dict(zip(found, np.split(whole, np.cumsum([len(features) for features in found.values()])[:-1]), strict=True))
    bank = parts.pop(SPLIT)
    near = {split: [Near(int(row), of) for row, of in zip(mistakes[split], nearest_kept(own, bank), strict=True)] for split, own in parts.items()}
    how = how_compared(t.record.selected, len(rows), len(train))
    findings = NeighbourFindings(pellucid.__version__, SPLIT, len(rows), len(train), how, [train.names[row] for row in rows.tolist()], near)
    write_atlas(t.run.inside / NEIGHBOUR_ATLAS, (viewed(t, SPLIT, row) for row in rows.tolist()), NEIGHBOUR_SIDE)
    KeptNeighbours(findings, bank, rows, train.labels[rows], parts).save(t.run.inside)
