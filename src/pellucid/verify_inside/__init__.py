"""Verification of what a run says of the inside of its model: scores of maps, projections, features, recomputed by paths that training did not take.

    kept.py     findings, arrays, hashes               stored.py   from the arrays and snapshots; what must be there
    scores.py   measures from their definitions        anew.py     from checkpoint and data
    planes.py   the numbers under a projection         maps.py     pictures, plain attention, features
    views.py    attention of patches, training images to compare with, atlases

Nothing here imports the measures, the projections or the recorder of `inside`, but for maps of models whose attention has no plain form (their check says so),
and for which part of the attention of patches has room, which follows from sizes alone.
Not recomputed: layouts of t-SNE (their numbers are), position embeddings, heads of attention that has no plain form.
"""

from pellucid.verify_inside.anew import anew_checks, reported_epoch
from pellucid.verify_inside.kept import Kept, open_kept
from pellucid.verify_inside.stored import stored_checks

__all__ = ["Kept", "anew_checks", "open_kept", "reported_epoch", "stored_checks"]
