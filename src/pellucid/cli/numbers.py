"""Commands that run a trained model: its numbers again or on other images, labels, masks, maps, a file for elsewhere."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from pellucid.cli.options import AsJson, Quiet, RunFolder, Tolerance
from pellucid.errors import MismatchError, PellucidError, RunError, UsageError
from pellucid.printing import measurement_table, print_captions, print_json, print_labels, print_masks, print_note, print_words


def verify(
    run: RunFolder,
    tolerance: Tolerance = 0.005,
    retrain: Annotated[bool, typer.Option("--retrain", help="Train again from the recipe and compare.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Recompute every reported number twice: from the predictions, and from checkpoint and data. Exit 3 on a mismatch."""
    from pellucid.run import Run

    opened = Run(run)  # where there is none, that is told before torch is imported
    from pellucid.progress import Progress
    from pellucid.verify import verify as verify_

    if retrain:
        verification = _retrained(opened, tolerance, quiet)
    else:
        with Progress(quiet=quiet) as progress:
            verification = verify_(opened, tolerance=tolerance, progress=progress)
        verification.save(opened)
        _renew_report(opened)
    if as_json:
        print_json({**asdict(verification), "result": verification.result})
    else:
        print("\n".join(verification.lines()))
        print(f"{verification.result}: {run} ({len(verification.checks)} checks, {sum(not c.ok for c in verification.checks)} failed)")
    if not verification.ok:
        raise MismatchError(f"{run}: " + "; ".join(c.line for c in verification.checks if not c.ok))


def _renew_report(run: Any) -> None:
    """The report with the new verdict; a run too damaged to draw is still judged."""
    try:
        run.report()
    except PellucidError as error:
        print(f"the report could not be written: {error}", file=sys.stderr)


def _retrained(run: Any, tolerance: float, quiet: bool) -> Any:
    import tempfile

    from pellucid.recipe import override
    from pellucid.run import DONE
    from pellucid.train import train as train_
    from pellucid.verify import compare_retrained

    if run.record.status != DONE:
        raise RunError(f"{run.path}: the run is {run.record.status}; only a finished run can be compared with a second training.")
    recipe = override(run.recipe, [f"train.threads={run.environment['threads']}"])  # the number of threads decides the bits
    with tempfile.TemporaryDirectory() as folder:
        return compare_retrained(run, train_(recipe, out=Path(folder) / "again", quiet=quiet, figures=False), tolerance)


def evaluate(
    target: Annotated[Path, typer.Argument(metavar="RUN|RECIPE", help="A run folder; with --masks also a recipe (YAML).")],
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            metavar="PATH",
            help="Images with what is true of them, as the run's source has them: a folder, a CSV (table, captions), a JSON of captions, pairs, masks alone.",
        ),
    ] = None,
    masks: Annotated[Path | None, typer.Option("--masks", metavar="DIR", help="Score these predicted masks, without any model.")] = None,
    split: Annotated[
        str | None,
        typer.Option(
            "--split", help="--masks without --data: split of the recipe with the true masks, by default val. Captions: split of a file that names some."
        ),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """The run's numbers on other images of the same classes, or with captions; or those of a folder of predicted masks."""
    from pellucid.progress import Progress
    from pellucid.run import Run

    wrong = "--split names a split of the recipe that --masks are scored against; it goes with --masks and without --data"
    if split is not None and masks is None and data is None:
        raise UsageError(f"{wrong}, or of a captioning run with --data")
    run = None if target.is_file() else Run(target)
    described = run is not None and run.record.task == "captioning" and masks is None
    if split is not None and not described and (masks is None or data is not None):
        raise UsageError(wrong)
    with Progress(quiet=quiet) as progress:
        if masks is not None:
            from pellucid import recipe as recipes
            from pellucid.mask_folders import evaluate_masks

            source = run or recipes.load(target)
            measurements = evaluate_masks(source, masks, data=data, split=split or "val", told=print_note, progress=progress)
        elif run is None or data is None:
            raise UsageError(f"{target}: {_missing(run)}")
        else:
            from pellucid.evaluate import evaluate as evaluate_

            measurements = evaluate_(run, str(data), split=split, told=print_note, progress=progress)
    if as_json:
        given = {"data": data, "masks": masks, "split": (split or "val") if masks is not None and data is None else split}
        print_json({"run" if run else "recipe": str(target), **{k: str(v) for k, v in given.items() if v}, "measurements": [asdict(m) for m in measurements]})
    else:
        print(measurement_table(measurements))


def _missing(run: Any) -> str:
    """What `evaluate` needs besides a run folder, or, for None, a recipe."""
    if run is None:
        return "a recipe has no model: give a run folder, or --masks DIR (masks that are predicted already)"
    if run.record.task == "captioning":
        return "give --data PATH (pictures with their captions: a CSV or JSON file, as data.source: captions has them)"
    return "give --data PATH (images for the run's model) or --masks DIR (masks that are predicted already)"


def predict(
    run: RunFolder,
    paths: Annotated[list[Path], typer.Argument(metavar="PATH…", help="Images and folders of images.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="PATH", help="CSV to write, or JSON of captions; of a segmentation run the folder for its masks.")
    ] = None,
    confidence: Annotated[bool, typer.Option("--confidence", help="Segmentation: also write <mask>_confidence.png, 8-bit grey.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Segmentation: replace files in --out; never true masks or what training reads.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Label images: CSV with filename, label and confidence. Of a segmentation run: a mask for each, and the share of each class. Of captioning: captions."""
    from pellucid.run import Run

    opened = Run(run)
    if opened.recipe.masked:
        from pellucid.evaluate import write_masks
        from pellucid.progress import Progress

        if out is None:
            raise UsageError(f"{run} predicts masks: give --out DIR, the folder to write them into")
        with Progress(quiet=quiet) as progress:
            written = write_masks(opened, paths, out, confidence=confidence, overwrite=overwrite, told=print_note, progress=progress)
            print_masks(written, opened.data.classes, as_json)
        return
    if opened.recipe.captioned:
        if given := "--confidence" if confidence else "--overwrite" if overwrite else "":
            raise UsageError(f"{given} belongs to segmentation; {run} captions pictures, and its file is written anew in any case")
        print_captions(opened.predict([str(path) for path in paths]), out, as_json)
        return
    if confidence:
        raise UsageError("--confidence writes pictures beside masks and belongs to segmentation; the confidence of a label stands in the CSV")
    if overwrite:
        raise UsageError("--overwrite replaces masks and belongs to segmentation; a CSV is written anew in any case")
    predictions = opened.predict([str(path) for path in paths])
    print_labels(predictions, out, as_json)


def inside(
    target: Annotated[str, typer.Argument(metavar="RUN|MODEL", help="A run folder, or a model: timm/<name>, torchvision/<name>, transformers/<name>.")],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE…", help="Photographs and folders of them.")],
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder for figures, arrays.npz and findings.json; of a captioner words.npz and words.json.")
    ],
    set_: Annotated[
        list[str] | None, typer.Option("--set", "-s", metavar="KEY=VALUE", help="A setting of the model, e.g. -s pretrained=false or -s image_size=384.")
    ] = None,
    maps: Annotated[
        list[str] | None,
        typer.Option("--map", help="attention, rollout, relevance, grad_cam, integrated_gradients or occlusion. Repeatable; default: the first four that fit."),
    ] = None,
    layer: Annotated[str | None, typer.Option("--layer", help="Path of the layer for attention and grad_cam; default: the last that tells something.")] = None,
    explained: Annotated[
        str | None, typer.Option("--class", help="Segmentation: the class whose maps are drawn; default: the largest, or best scored.")
    ] = None,
    masks: Annotated[Path | None, typer.Option("--masks", metavar="PATH", help="Folder with <name>.png for each photograph, or one file for one.")] = None,
    mask_target: Annotated[list[int] | None, typer.Option("--mask-target", help="Value of the masks that is the target; default: all above 0.")] = None,
    mask_ignore: Annotated[list[int] | None, typer.Option("--mask-ignore", help="Value of the masks that counts neither way.")] = None,
    deletion: Annotated[bool, typer.Option("--deletion/--no-deletion", help="Without masks, score by deletion and insertion: some hundred passes.")] = True,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """What is inside a model: maps over photographs, each with its measures and baselines; heads; position embeddings. Of a captioner: a map for each word."""
    from pellucid.look import look_into, summary
    from pellucid.look_words import is_spoken
    from pellucid.progress import Progress
    from pellucid.tables import table

    if is_spoken(target):
        given = {"--map": maps, "--layer": layer, "--class": explained, "--masks": masks, "--mask-target": mask_target, "--mask-ignore": mask_ignore}
        if odd := [name for name, value in given.items() if value] + ([] if deletion else ["--no-deletion"]):
            raise UsageError(f"{odd[0]} belongs to models that name classes; {target} says captions, and each word has one map: -s layers=… and -s heads=…")
        _words(target, images, out, set_ or [], as_json, quiet)
        return
    with Progress(quiet=quiet) as progress:
        found = look_into(
            target, images, out, overrides=set_ or [], methods=maps, layer=layer, masks=masks, mask_target=mask_target, mask_ignore=mask_ignore or [],
            explained=explained, deletion=deletion, progress=progress,
        )  # fmt: skip
    if as_json:
        print_json({"out": str(out), **asdict(found)})
        return
    for line in [*found.notes, *(f"{image.file}: {flag}" for image in found.images for flag in image.flags)]:
        print(f"note: {line}", file=sys.stderr)
    print(table(["map", "measure", "mean", "95 % interval", "baselines"], summary(found)))
    print(out)


def _words(target: str, images: list[Path], out: Path, overrides: list[str], as_json: bool, quiet: bool) -> None:
    """`inside` of a captioner."""
    from pellucid.caption_readings import word_maps
    from pellucid.look_words import look_into_words, summary
    from pellucid.progress import Progress

    with Progress(quiet=quiet) as progress:
        found = look_into_words(target, images, out, overrides=overrides, progress=progress)
    if as_json:
        print_json({"out": str(out), **asdict(found)})
    else:
        print_words(found, summary(found, word_maps(out, found)), out)


def export(
    run: RunFolder,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Default: model.onnx, model.safetensors or backbone.safetensors in the run folder.")
    ] = None,
    format_: Annotated[str | None, typer.Option("--format", help="onnx (default) or safetensors.")] = None,
    backbone: Annotated[
        bool, typer.Option("--backbone", help="The model without its classifier, as safetensors that model.weights of another recipe takes.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write the model as ONNX or safetensors after checking that it gives the same logits, or its backbone for other recipes."""
    from pellucid.run import Run

    opened = Run(run)  # where there is none, that is told before torch is imported
    if format_ not in (None, "onnx", "safetensors"):
        raise UsageError(f"--format: expected onnx or safetensors, got {format_!r}")
    if backbone and format_ == "onnx":
        raise UsageError("--backbone writes safetensors, which other recipes start from; leave --format out")
    from pellucid.evaluate import export_run, export_run_backbone

    result = export_run_backbone(opened, out) if backbone else export_run(opened, out, format_ or "onnx")
    if as_json:
        print_json(asdict(result))
    else:
        print("\n".join(result.lines()))
