"""Files with published weights: from the local caches of timm, torchvision and the hub, else downloaded into them.

A cached file is taken as it is, without asking a server whether there is a newer one. A file that can be had neither way is a `MissingError` that says
where to put it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import huggingface_hub.constants
import huggingface_hub.errors
import timm
import torch
from timm.models import PretrainedCfg

from pellucid.errors import MissingError, UsageError, WeightsError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PREPROCESSORS = ("preprocessor_config.json", "processor_config.json")


def timm_tags(architecture: str) -> list[str]:
    """Names with tags that have published weights, e.g. resnet18.a1_in1k."""
    return [name for name in timm.list_models(f"{architecture}.*", pretrained=True) if name.split(".")[0] == architecture]


def timm_file(model: str, config: PretrainedCfg | None) -> tuple[Path, bool]:
    """(file, whether it is of a format that only the model reads) with a timm model's published weights; `config` is timm's record of them."""
    if config is None or not config.has_weights:
        tagged = ", ".join(timm_tags(model.split(".")[0])) or "none"
        raise UsageError(f"timm/{model} has no published weights (with weights: {tagged}). Set pretrained: false or give weights: FILE.")
    if not config.hf_hub_id:
        url = config.url if isinstance(config.url, str) else (config.url or [""])[0]
        return torch_hub_file(f"timm/{model}", url), bool(config.custom_load)
    files = (config.hf_hub_filename,) if config.hf_hub_filename else ("model.safetensors", "pytorch_model.bin")
    repository, _, revision = config.hf_hub_id.partition("@")
    for file in files:
        cached = huggingface_hub.try_to_load_from_cache(repository, file, revision=revision or None)
        if isinstance(cached, str):
            return Path(cached), bool(config.custom_load)
    for file in files:
        found = _downloaded(f"timm/{model}", "its weights {} are", repository, revision or None, file)
        if found is not None:
            return found, bool(config.custom_load)
    raise MissingError(f"timm/{model}: {repository} holds none of {', '.join(files)}. Give weights: FILE.")


def transformers_folder(name: str, repository: str, *, weights: bool) -> Path:
    """The folder with config.json, and model.safetensors where `weights`, of a repository in the hub's layout (`owner/name` or `owner/name@revision`).

    From the hub's local cache when all of them are there, else downloaded into it. MissingError when neither can be had, or when the weights are in no
    safetensors file: pickles are not loaded.
    """
    repository, _, given = repository.partition("@")
    revision = given or None

    def cached(file: str) -> Path | None:
        found = huggingface_hub.try_to_load_from_cache(repository, file, revision=revision)
        return Path(found) if isinstance(found, str) else None

    folder = _gathered(cached, weights=weights)
    if folder is None:
        folder = _gathered(lambda file: _downloaded(name, "its file {} is", repository, revision, file), weights=weights)
    if folder is None:
        wanted = f"config.json and {WEIGHTS} (a .bin is a pickle and is not loaded)" if weights else "config.json"
        raise MissingError(f"{name}: expected {wanted} in {repository}. Choose another model, or give weights: FILE.")
    if not any((folder / file).is_file() for file in PREPROCESSORS):
        for file in PREPROCESSORS:  # of the commit whose folder this is; without them the model's class has a default
            with contextlib.suppress(MissingError):
                _downloaded(name, "its file {} is", repository, folder.name, file)
    return folder


def weight_files(index: Path) -> list[str]:
    """Names of the files that `model.safetensors.index.json` spreads the weights over; a name that would leave the folder is refused."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{index}: expected a JSON object with weight_map, the file of each tensor: {error!r}. Download it again.") from None
    odd = [name for name in names if not isinstance(name, str) or "/" in name or "\\" in name or not name.endswith(".safetensors")]
    if odd or not names:
        raise WeightsError(f"{index}: expected names of .safetensors files beside it, got {odd[0] if odd else 'none'!r}.")
    return names


def _gathered(get: Callable[[str], Path | None], *, weights: bool) -> Path | None:
    """The folder that holds what `get` found of a model's files; None when one that is needed was not found."""
    config = get("config.json")
    if config is None or not weights or get(WEIGHTS) is not None:
        return config.parent if config is not None else None
    index = get(INDEX)
    if index is None or any(get(file) is None for file in weight_files(index)):
        return None
    return config.parent


def _downloaded(name: str, what: str, repository: str, revision: str | None, file: str) -> Path | None:
    """A file of a repository, downloaded into the hub's cache; None when the repository was reached and lacks it. MissingError when it was not reached."""
    try:
        return Path(huggingface_hub.hf_hub_download(repository, file, revision=revision))
    except huggingface_hub.errors.RemoteEntryNotFoundError:
        return None
    except Exception as error:  # the hub's client raises a dozen types of three libraries
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        cache = huggingface_hub.constants.HF_HUB_CACHE
        raise MissingError(
            f"{name}: {what.format(f'{repository}/{file}')} not in {cache} and cannot be downloaded ({reason}). With a network: "
            f"`hf download {repository} {file}`; without: copy the folder models--{repository.replace('/', '--')} into {cache}, or give weights: FILE."
        ) from error


def torch_hub_file(name: str, url: str) -> Path:
    """The file of `url` in torch's hub cache, downloaded into it when it is not there."""
    file = Path(torch.hub.get_dir()) / "checkpoints" / os.path.basename(url)
    if file.is_file():
        return file
    file.parent.mkdir(parents=True, exist_ok=True)
    sha256 = re.search(r"-([a-f0-9]+)\.", file.name)
    try:
        torch.hub.download_url_to_file(url, str(file), sha256.group(1) if sha256 else None, progress=False)
    except (OSError, RuntimeError) as error:  # no network (URLError is an OSError), or a damaged download
        raise MissingError(f"{name}: its weights {file.name} cannot be downloaded ({error}). Put the file at {file}, or give weights: FILE.") from error
    return file
