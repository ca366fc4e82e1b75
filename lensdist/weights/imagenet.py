"""torchvision's ImageNet weights, from a file, from torch's cache or from the network."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

from lensdist.utils.errors import UserError
from lensdist.utils.files import sha256
from lensdist.utils.torchvision_compat import import_torchvision
from lensdist.weights.architectures import modern_names
from lensdist.weights.files import read_weights
from lensdist.weights.modules import check_module

_HASH = re.compile(r"-([0-9a-f]{8,64})\.")  # the content's hash in the name of a published file


def imagenet_state(architecture: str, file: Path | None = None) -> dict[str, Tensor]:
    """Return the IMAGENET1K_V1 weights of a torchvision classifier, by torchvision's names.

    Args:
        architecture: torchvision's name, such as `densenet161`.
        file: the file with the weights. None: torch's cache, into which they are downloaded.

    Raises:
        UserError: torchvision has no such weights, the download failed, or the file does not match
            the hash in its name; the message names the URL and the path for the file.
    """
    url = _url(architecture)
    cached = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    if file is not None and not file.is_file():
        raise UserError(f"weights.{architecture}: there is no file {file}; {_help(url, file)}")
    if file is None and not cached.is_file():
        _download(architecture, url, cached)
    path = file or cached
    prefix = _HASH.search(path.name)
    try:
        intact = prefix is None or sha256(path).startswith(prefix[1])
    except OSError as error:
        raise UserError(f"weights.{architecture}: cannot read {path}: {error.strerror}") from error
    if not intact:
        raise UserError(
            f"{path} is damaged: its hash does not begin with the {prefix[1] if prefix else ''} in "
            f"its name; remove it and get {url} again"
        )
    found = read_weights(path)
    if found.module is not None:
        models = import_torchvision().models
        try:
            with torch.device("meta"):
                check_module(found.module, models.get_model(architecture, weights=None))
        except UserError as error:
            raise UserError(f"weights.{architecture}: {path}: {error}") from error
    return modern_names(found.tensors)


def _url(architecture: str) -> str:
    models = import_torchvision().models
    try:
        return str(models.get_model_weights(architecture)["IMAGENET1K_V1"].url)
    except (ValueError, KeyError):
        raise UserError(
            f"torchvision has no ImageNet weights for {architecture!r}; set init=random"
        ) from None


def _download(architecture: str, url: str, target: Path) -> None:
    prefix = _HASH.search(target.name)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # This downloads into a temporary file, and renames it when the hash is correct.
        torch.hub.download_url_to_file(
            url, str(target), prefix[1] if prefix else None, progress=False
        )
    except (OSError, RuntimeError) as error:  # no network, a full disk, or a wrong hash
        raise UserError(
            f"the ImageNet weights of {architecture} could not be downloaded ({error}): get {url} "
            f"elsewhere and put it at {target}, or name it with weights.{architecture}=PATH, or "
            "set init=random"
        ) from error


def _help(url: str, file: Path) -> str:
    return f"get {url} and put it there, or leave the setting out, or set init=random"
