"""What commands answer, as text for people or one JSON object for programs. Results go to stdout, notes to stderr."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any


def rank() -> int:
    """Number of this process among those that torchrun started; 0 without it. The others train along and print nothing but errors."""
    return int(os.environ.get("RANK", "0"))


def print_json(value: Any) -> None:
    plain: Callable[[Any], Any] = lambda v: asdict(v) if is_dataclass(v) and not isinstance(v, type) else str(v)  # noqa: E731
    print(json.dumps(value, default=plain, ensure_ascii=False))


def print_run(run: Any, as_json: bool) -> None:
    if rank():
        return
    if as_json:
        found = {"run": str(run.path), "measurements": {key: m.value for key, m in run.measurements.items()}}
        print_json(found | ({"alarms": alarms} if (alarms := run.record.alarms) else {}))
    else:
        print(run.path)


def print_note(line: str) -> None:
    print(f"note: {line}", file=sys.stderr)


def print_measurements(run: Any) -> None:
    record = run.record
    for line in record.notes:
        print_note(line)
    print(measurement_table(record.measurements))
    for line in record.alarms:  # beside the numbers, which they say how to read
        print(f"ALARM {line}")


def measurement_table(measurements: Any) -> str:
    from pellucid.run import rounded
    from pellucid.tables import table

    def interval(m: Any) -> str:
        return f"{rounded(m.interval[0], m.unit)} to {rounded(m.interval[1], m.unit)}" if m.interval else ""

    return table(["number", "value", "95 % interval", "unit", "n"], [(m.key, str(m), interval(m), m.unit, f"{m.n:,}") for m in measurements])


def print_labels(predictions: Any, out: Path | None, as_json: bool) -> None:
    """Predicted labels as CSV into `out`, whose path is printed, or to stdout."""
    if as_json:
        print_json({"predictions": [asdict(p) for p in predictions]})
        return
    rows = [[p.file, p.label, f"{p.confidence:.6f}"] for p in predictions]
    if out is None:
        csv.writer(sys.stdout).writerows([["filename", "label", "confidence"], *rows])
        return
    with out.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([["filename", "label", "confidence"], *rows])
    print(out)


def print_captions(predictions: Iterable[Any], out: Path | None, as_json: bool) -> None:
    """Captions as CSV (filename, caption), or as JSON {name: caption} where `out` ends in .json or as_json; into `out`, whose path is printed, or to stdout."""
    rows = [(p.file, p.caption) for p in predictions]
    if out is not None:
        with out.open("w", newline="", encoding="utf-8") as stream:
            if out.suffix.lower() == ".json":
                json.dump(dict(rows), stream, ensure_ascii=False, indent=1)
                stream.write("\n")
            else:
                csv.writer(stream).writerows([["filename", "caption"], *rows])
    if as_json:
        print_json(dict(rows))
    elif out is not None:
        print(out)
    else:
        csv.writer(sys.stdout).writerows([["filename", "caption"], *rows])


def print_words(found: Any, rows: Sequence[Sequence[str]], out: Path) -> None:
    """The caption of each picture, its words with the place that each was looked for in, and the folder; notes to stderr. rows: as `look_words.summary`."""
    from pellucid.tables import table

    for line in found.notes:
        print_note(line)
    for image in found.images:
        print(f"{image.file}: {image.caption or 'no word was found'}")
        print(table(["word", "read before it", "looked most at", "attention there", "on the patches"], [row[1:] for row in rows if row[0] == image.file]))
    print(out)


def print_masks(written: Iterable[Any], classes: Sequence[str], as_json: bool) -> None:
    """A row for each mask as soon as it is written: image, mask, and the share of each class among its pixels."""
    if as_json:
        print_json({"predictions": [asdict(p) for p in written]})
        return
    writer = csv.writer(sys.stdout)
    for i, p in enumerate(written):
        if not i:
            writer.writerow(["filename", "mask", *classes])
        writer.writerow([p.file, p.mask, *(f"{p.shares[name]:.6f}" for name in classes)])


def _phase_line(q: Any) -> str:
    from pellucid.run import rounded

    first, peak, last = (rounded(lr, "rate") for lr in (q.first_lr, q.peak_lr, q.last_lr))
    return f"{q.epochs} epochs, {q.steps:,} steps, {q.optimizer}, {q.schedule}; lr {first} first, {peak} highest, {last} last"


def _snapshots_line(s: Any) -> str:
    from pellucid.tables import size

    shown = [str(epoch) for epoch in (s.epochs if len(s.epochs) <= 8 else [*s.epochs[:3], "…", *s.epochs[-2:]])]
    features = f"features of {s.images:,} {s.split} images ({s.features:,} numbers each, half precision) {size(s.features_bytes)}"
    maps = f"maps of {s.pictures:,} pictures at most {size(s.maps_bytes)}"
    masks = f"masks of {s.pictures:,} pictures {size(s.masks_bytes)}"
    kept = "; ".join(([features] if s.images else []) + ([masks] if s.masks_bytes else []) + ([maps] if s.maps_bytes else []))
    return f"{len(s.epochs)} (after epoch {', '.join(shown)}): {kept}"


def _views_line(s: Any) -> str:
    from pellucid.tables import size

    attention = f"attention of all patches {size(s.attention_bytes)} before it is packed"
    compared = f"features of {s.neighbours:,} training images and of mistakes {size(s.neighbours_bytes)}"
    tiles = f"small pictures about {size(s.tiles_bytes)}"
    return "; ".join(([attention] if s.attention_bytes else []) + ([compared] if s.neighbours else []) + ([tiles] if s.tiles_bytes else []))


def print_plan(p: Any, batch_size: int) -> None:
    from pellucid.tables import duration, size, table

    rows = [
        ("data", f"{p.classes} classes; " + ", ".join(f"{name} {n:,}" for name, n in p.images.items())),
        ("steps", f"{p.total_steps:,} ({p.steps_per_epoch:,} an epoch, batch {batch_size})"),
        *[(f"phase {i + 1}", _phase_line(q)) for i, q in enumerate(p.phases)],
        ("parameters", f"{p.num_params:,}, {p.num_trainable:,} trained"),
        ("weights", size(p.weights_bytes)),
        ("checkpoint", size(p.checkpoint_bytes)),
        ("activations", f"{size(p.activation_bytes_per_image)} an image"),
        ("memory", f"about {size(p.memory_bytes)} at micro-batch {p.micro_batch_size}; {size(p.free_bytes)} free on {p.device}"),
        ("forward pass", f"{p.forward_flops_per_image / 1e9:.2f} GFLOP an image"),
        *([("snapshots", _snapshots_line(p.snapshots))] if p.snapshots else []),
        *([("views", told)] if p.snapshots and (told := _views_line(p.snapshots)) else []),
        ("time", "not measured" if p.seconds is None else f"about {duration(p.seconds)} ({p.seconds_per_image * 1e3:.1f} ms an image, measured here)"),
    ]  # fmt: skip
    print(table(["what", "figure"], rows))
    if any(p.pixels.values()):
        print("\n" + pixel_table(p.class_names, p.pixels))
    if p.formats:
        own = [(f.settings, f"{f.seconds_per_image * 1e3:.1f} ms", f"{f.ratio:.2f}") for f in p.formats]
        print("\n" + table(["format", "an image", "times the recipe's"], own))
    for note in p.notes:
        print(f"note: {note}")
    print(f"\nresolved values:\n{p.resolved}", end="")


def pixel_table(classes: Sequence[str], pixels: Mapping[str, Sequence[int]]) -> str:
    """Pixels of each class in the masks of each split, and their share of those that are not ignored; of the ignored ones, the share of all."""
    from pellucid.tables import table

    rows = []
    for c, name in enumerate([*classes, "ignored"]):
        cells = []
        for counts in pixels.values():
            whole = sum(counts) if c == len(classes) else sum(counts[:-1])
            cells += [f"{counts[c]:,}", f"{100 * counts[c] / whole:.2f}" if whole else "n/a"]
        rows.append([name, *cells])
    return table(["class", *(head for split in pixels for head in (f"{split}, pixels", "%"))], rows)


def print_data_report(found: Any) -> None:
    from pellucid.tables import table

    masked = any(s.pixels for s in found.splits.values())
    if masked:
        print(pixel_table(found.classes, {name: s.pixels for name, s in found.splits.items()}))
    elif found.classes and not found.captions:
        print(table(["class", *found.splits], [(c, *[str(s.counts[i]) for s in found.splits.values()]) for i, c in enumerate(found.classes)]))
    print(table(["split", "images", "content hash"], [(name, f"{s.n:,}", s.hash) for name, s in found.splits.items()]))
    for p in found.problems:
        print(f"{'BAD ' if p.fatal else 'note'} {p.kind} {p.where}: {p.detail}")
    print(f"{len(found.problems)} findings, {sum(p.fatal and bool(p.file) for p in found.problems)} bad images")
