"""Files that appear whole: written beside their name, synced, and put in place by one rename; and the hash of their content."""

from __future__ import annotations

import contextlib
import hashlib
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
