"""Files that appear whole: written beside their name, synced, and put in place by one rename; the hash of their content; folders that one process holds."""

from __future__ import annotations

import contextlib
import fcntl
import fnmatch
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from pellucid.errors import RunError

_OF_A_MODEL = (  # files of a folder in the hub's layout that decide what is built of it: configuration, weights, preparation, tokeniser
    "config.json", "generation_config.json", "*.safetensors", "model.safetensors.index.json", "preprocessor_config.json", "processor_config.json",
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model",
)  # fmt: skip


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

    Who wrote it, and as what run, stands in the file too and does not count. Of a folder in the hub's layout that of each file that says what the model is, by
    name; what else lies there does not count.
    """
    digest = hashlib.blake2b(digest_size=16)
    if path.is_dir():
        chosen = sorted(file for file in path.iterdir() if file.is_file() and any(fnmatch.fnmatchcase(file.name, name) for name in _OF_A_MODEL))
        digest.update(json.dumps({file.name: weights_hash(file) for file in chosen}).encode())
        return digest.hexdigest()
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


@contextlib.contextmanager
def locked(folder: Path, what: str, busy: str) -> Iterator[None]:
    """A folder, made if need be, held by this process alone for the block; empty, it is removed again. what: it is for, busy: why it cannot be had.

    RunError where it is a file or another process holds it. The lock goes with the process, however that ends.
    """
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder}: expected a folder for {what}, there is a file of that name.")
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / ".lock"
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunError(f"{folder}: {busy}") from None
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
            if not any(folder.iterdir()):
                folder.rmdir()
