"""Verification of what the numbers of a captioning say of themselves: `how` and `interval_how`, put together anew from recipe, curves, samples and tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pellucid.models.captioner import Generation
from pellucid.predictions import CaptionPredictions
from pellucid.recipe import Recipe
from pellucid.run import Measurement, Run
from pellucid.tasks.caption_numbers import BASELINES, HOW
from pellucid.tasks.captioning import Captioning, describe
from pellucid.verify_inside.kept import Line, line
from pellucid.verify_inside.scores import RESAMPLES

OF_TOKENS = ("token_accuracy", "loss")  # numbers over the tokens of the pictures' own captions, whatever was found


def text_line(run: Run, split: str, measurements: Sequence[Measurement], found: CaptionPredictions, generation: Generation) -> Line:
    """What each number of a split says of itself, against what its recipe and samples say; numbers that are none of a captioning are told elsewhere."""
    faults = weights_faults(run)
    note = run.record.selected + _selected_here(run.recipe, split) + leaks_of(run, split)
    known = how_of(found, generation, note)
    for m in measurements:
        if m.name in known and m.how != known[m.name]:
            faults.append(f"{m.key} says of itself {m.how!r}, expected {known[m.name]!r}")
        if m.interval is not None and m.interval_how != (bounds := interval_text(m.name, m.n)):
            faults.append(f"the interval of {m.key} says of itself {m.interval_how!r}, expected {bounds!r}")
        if m.interval is None and m.interval_how:
            faults.append(f"{m.key} has no interval, and says of it {m.interval_how!r}")
    return line(f"{split} texts", faults, f"what {len(measurements)} numbers say of themselves follows from recipe and samples")


def how_of(found: CaptionPredictions, generation: Generation, note: str) -> Mapping[str, str]:
    """{name: what the number says of itself} of every number that a captioning can have."""
    of_tokens = {name: f"{HOW[name]}; {int(found.counted.sum()):,} tokens; {note}" for name in OF_TOKENS}
    of_captions = {name: f"{text}; {describe(generation)}; {note}" for name, text in HOW.items() if name not in OF_TOKENS}
    beside = {f"{name}[{other}]": f"{HOW[name]}; {text}; no network" for other, text in BASELINES.items() for name in HOW}
    return of_tokens | of_captions | beside


def interval_text(name: str, n: int) -> str:
    """What the interval of a number over n pictures says of itself."""
    if name.startswith("exact_match"):
        return f"95 % Wilson interval over {n:,} samples"
    return f"95 % bootstrap interval over {n:,} pictures ({RESAMPLES:,} resamples)"


def _selected_here(recipe: Recipe, split: str) -> str:
    return "; selected on this split, hence optimistic" if split == "val" and recipe.train.keep == "best" else ""


def weights_faults(run: Run) -> list[str]:
    """What is wrong with the words for the weights that were measured: last epoch, or the one with the best value on the curves."""
    recipe, said, wanted = run.recipe, run.record.selected, "last epoch"
    if recipe.train.keep == "best":
        stopping = recipe.train.early_stop
        metric = (stopping.metric if stopping is not None else None) or Captioning.headline
        found = [(entry[metric] * (-1 if metric == "loss" else 1), entry["epoch"]) for entry in run.metrics() if entry["kind"] == "val"]
        best = max((value for value, _ in found), default=None)
        wanted = f"epoch {next((epoch for value, epoch in found if value == best), 0)}, the best {metric} on val"
    wanted += ", moving average of the weights" if recipe.train.ema is not None else ""
    return [] if said == wanted else [f"the weights are said to be those of {said!r}, expected {wanted!r}"]


def leaks_of(run: Run, split: str) -> str:
    """The part of a text that says how many pictures of a split stand in an earlier one too, by the hashes of the samples; "" of none."""
    names = list(run.data.splits)
    contents = {name: {content.partition("+")[0] for _, _, content in run.samples(name)} for name in names}
    own = contents[split]
    shared = own & set().union(*(contents[name] for name in names[: names.index(split)]))
    n = run.data.splits[split].n
    return f"; {len(shared)} of its {n} images stand in another split too, so that it is no measure of new images" if shared else ""
