"""Files of a run as values: records in JSON, arrays in .npz; what cannot be read is an error that names the file. Needs no torch."""

from __future__ import annotations

import dataclasses
import json
import os
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import numpy as np
import PIL.Image
from pydantic import ConfigDict, TypeAdapter, ValidationError

from pellucid.errors import RunError
from pellucid.files import replacing

CLOSED = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)  # what a record read from JSON may hold: its own fields, of their types
MOST_DIRECTORY = 1 << 24  # bytes of the directory of a .npz file: some hundred thousand arrays
MOST_PIXELS = 1 << 26  # of a picture that a run keeps: masks are as large as their photographs
_END = b"PK\x05\x06"  # how the last 22 bytes of a zip without a comment begin
_T = TypeVar("_T")


def read_arrays(path: Path, what: str, *names: str, optional: bool = False) -> dict[str, np.ndarray]:
    """The named arrays of a .npz file in their order, all of them without names; RunError where it cannot be read as `what`.

    optional: of the names those that the file has.
    """
    try:
        with path.open("rb") as file, np.load(_zip(file), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in names or arrays.files if not optional or name in arrays}
    except Exception as error:  # a damaged zip raises half a dozen types
        raise RunError(f"{path}: cannot be read as {what}: {error}") from None


def array_names(path: Path, what: str) -> list[str]:
    """The names of the arrays of a .npz file in its order; RunError where it cannot be read as `what`."""
    try:
        with path.open("rb") as file, np.load(_zip(file), allow_pickle=False) as arrays:
            return list(arrays.files)
    except Exception as error:
        raise RunError(f"{path}: cannot be read as {what}: {error}") from None


def unpacked_bytes(path: Path) -> int:
    """How much memory the arrays of a .npz file can take at most, by its directory; 0 where that cannot be read, as whoever reads the file then says."""
    try:
        with path.open("rb") as file, zipfile.ZipFile(_zip(file)) as archive:
            return sum(entry.file_size for entry in archive.infolist())
    except Exception:  # a damaged zip raises half a dozen types
        return 0


def _zip(file: BinaryIO) -> BinaryIO:
    """The file, back at its beginning; ValueError where its directory is larger than a run's, which alone could fill the memory."""
    end = file.seek(0, os.SEEK_END)
    file.seek(max(0, end - len(_END) - 18))
    last = file.read()
    if file.seek(0) == 0 and last.startswith(_END) and int.from_bytes(last[12:16], "little") <= MOST_DIRECTORY:
        return file
    if file.read(4) != b"PK\x03\x04":
        file.seek(0)
        return file  # no zip at all, which NumPy says
    raise ValueError(f"the directory of the archive has more than {MOST_DIRECTORY:,} bytes, or stands not at its end")


def read_picture(path: Path, most: int = MOST_PIXELS) -> PIL.Image.Image:
    """A picture that a run keeps, decoded. Larger by its header than `most` pixels, or damaged: ValueError; OSError where it cannot be opened."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)
            with PIL.Image.open(path, formats=("WEBP", "PNG", "JPEG")) as opened:
                if opened.width * opened.height > most:
                    raise ValueError(f"it has {opened.width:,} x {opened.height:,} pixels, expected at most {most:,}")
                opened.load()
                return opened
    except (SyntaxError, EOFError, PIL.Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from None


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], *, compressed: bool = False) -> None:
    """Equal arrays give equal bytes: the times in the archive are fixed."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        (np.savez_compressed if compressed else np.savez)(file, **cast("dict[str, Any]", dict(arrays)))


def read_record(path: Path, adapter: TypeAdapter[_T]) -> _T:
    """The record in a JSON file; RunError says what in it is not as it was written."""
    try:
        return adapter.validate_json(path.read_bytes())
    except ValidationError as error:
        raise RunError(f"{path}: not readable as JSON of a run: {_why(error)}; the file was changed or is from another version of Pellucid") from None


def _why(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg']}" if where else first["msg"]


def write_json(path: Path, value: Any) -> None:
    """Write a dataclass or a mapping as JSON through a temporary file and a rename, so that a reader sees all of it or none."""
    plain = asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(plain, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
