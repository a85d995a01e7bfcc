"""Files with published weights: from the local caches of timm and torchvision, else downloaded into them.

A cached file is taken as it is, without asking a server whether there is a newer one. A file that can be had neither way is a `MissingError` that says
where to put it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import huggingface_hub
import huggingface_hub.constants
import huggingface_hub.errors
import timm
import torch
from timm.models import PretrainedCfg

from pellucid.errors import MissingError, UsageError


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
        try:
            return Path(huggingface_hub.hf_hub_download(repository, file, revision=revision or None)), bool(config.custom_load)
        except huggingface_hub.errors.RemoteEntryNotFoundError:
            continue  # the repository was reached and keeps its weights in the other format
        except Exception as error:  # the hub's client raises a dozen types of three libraries
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            cache = huggingface_hub.constants.HF_HUB_CACHE
            raise MissingError(
                f"timm/{model}: its weights {repository}/{files[0]} are not in {cache} and cannot be downloaded ({reason}). With a network: "
                f"`hf download {repository} {files[0]}`; without: copy the folder models--{repository.replace('/', '--')} into {cache}, or give weights: FILE."
            ) from error
    raise MissingError(f"timm/{model}: {repository} holds none of {', '.join(files)}. Give weights: FILE.")


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
