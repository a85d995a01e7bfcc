"""Files that appear whole: written beside their name, synced, and put in place by one rename; and the hash of their content."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path, suffix: str = "") -> Iterator[Path]:
    """A temporary path beside `path` (ending in `suffix`) that takes its place when the block ends without an error."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}{suffix}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def text_hash(text: str) -> str:
    """BLAKE2b-128 of a text as a file would hold it, as hex."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def bytes_hash(data: bytes) -> str:
    """BLAKE2b-128 of bytes, as hex: the content hash of an image file."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def file_hash(path: Path) -> str:
    """BLAKE2b-128 of a file, as hex."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def weights_hash(path: Path) -> str:
    """BLAKE2b-128 of what a .safetensors file decides, as hex: its tensors, and the mean and std that stand in it; of any other file of its bytes.

    Who wrote it, and as what run, stands in the file too and does not count.
    """
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(size)) if path.suffix == ".safetensors" and size < path.stat().st_size else None
        except ValueError:
            header = None
        if not isinstance(header, dict):
            return file_hash(path)
        said = header.pop("__metadata__", None) or {}
        digest.update(json.dumps([header, said.get("mean"), said.get("std")], sort_keys=True).encode())
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
