"""Where the words of a finished captioning run on drawn scenes looked: at their thing, within one patch around it, at the other thing; and one step later.

python bench/word_maps.py RUN    (a run of recipes/captions-scenes.yaml; about a minute of one core for 500 scenes)

`pellucid verify` recomputes what a run reports. This says what it does not: how near a map comes that is not on its thing, and what a map shows that is off
by one step, whose query is the word itself.
"""

from __future__ import annotations

import sys
from collections import defaultdict

import numpy as np
import torch
from scipy.ndimage import binary_dilation

from pellucid.data.augment import evaluate_view
from pellucid.data.loader import pack_images
from pellucid.data.sources import load_dataset
from pellucid.inside.faithfulness import mass, patch_target, pointing
from pellucid.inside.word_scores import things_of
from pellucid.inside.words import given_maps, merged
from pellucid.models.captioner import Captioner
from pellucid.run import Run
from pellucid.tasks import load_model, runtime_of
from pellucid.tasks.captioning import tokenizer_of

AT_ONCE = 50


def main(path: str) -> None:
    """Print a Markdown table: a row for each kind of word, step and layer."""
    run = Run(path)
    recipe, runtime, tokenizer = run.recipe, runtime_of(run), tokenizer_of(run)
    module = runtime.place(load_model(run))
    assert isinstance(module, Captioner)
    split = load_dataset(recipe.data, seed=recipe.seed, captions=True, fewest_classes=1).splits["val"]
    assert split.captions is not None
    assert split.captions.things is not None
    tokens, found = run.caption_predictions("val").tokens, defaultdict(list)
    for start in range(0, len(split), AT_ONCE):
        rows = range(start, min(start + AT_ONCE, len(split)))
        images = pack_images([np.asarray(split.open(row)) for row in rows])
        inputs = evaluate_view(images, size=recipe.data.size, mean=run.data.mean, std=run.data.std)
        with torch.inference_mode():
            maps = given_maps(module, inputs, tokens[rows.start : rows.stop])
        patch = recipe.data.size[0] // maps.grid[0]
        for b, row in enumerate(rows):
            words = tokenizer.words(maps.tokens[b][: maps.length(b)].tolist())
            things = split.captions.things(row)
            for placed in things_of([text for text, _, _ in words], things):
                if placed.mask is None:
                    continue
                others = np.logical_or.reduce([thing.mask for thing in things if not (thing.mask & placed.mask).any()])
                masks = (placed.mask, binary_dilation(placed.mask, np.ones((3, 3)), iterations=patch), others)
                targets = [patch_target(mask.astype(np.uint8), maps.grid) for mask in masks]
                for later in (0, 1):
                    for layer in range(maps.maps.shape[1]):
                        spans = [(first, behind) for _, first, behind in words]
                        values = merged(maps.maps[b, layer].mean(0), spans, "mean", offset=later)[placed.word]
                        if not np.isnan(values).any():
                            numbers = [measure(values, target) for target in targets for measure in (pointing, mass)]
                            found[placed.kind, later, layer].append(numbers)
    print("| words | step | layer | n | pointing: thing | within a patch | other thing | mass: thing | within a patch | other thing |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for (kind, later, layer), numbers in sorted(found.items()):
        values = np.mean(numbers, axis=0)[[0, 2, 4, 1, 3, 5]]
        print(f"| {kind} | {'one later' if later else 'its own'} | {layer} | {len(numbers):,} | {' | '.join(f'{value:.3f}' for value in values)} |")


if __name__ == "__main__":
    main(sys.argv[1])
