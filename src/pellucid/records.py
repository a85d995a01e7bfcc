"""Files of a run as values: records in JSON, arrays in .npz; what cannot be read is an error that names the file. Needs no torch."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError

from pellucid.errors import RunError
from pellucid.files import replacing

CLOSED = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)  # what a record read from JSON may hold: its own fields, of their types
_T = TypeVar("_T")


def read_arrays(path: Path, what: str, *names: str) -> dict[str, np.ndarray]:
    """The named arrays of a .npz file in their order, all of them without names; RunError where it cannot be read as `what`."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in names or arrays.files}
    except Exception as error:  # a damaged zip raises half a dozen types
        raise RunError(f"{path}: cannot be read as {what}: {error}") from None


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
