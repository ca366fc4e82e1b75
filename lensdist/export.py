"""The exported model: weights, and all that is needed to use them, in one folder.

export/model.safetensors   the network's weights
       config.json         task, preset, model, labels, preprocessing, metrics
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as parse_safetensors
from torch import Tensor, nn

from lensdist.data.preprocess import Preprocess
from lensdist.errors import UserError
from lensdist.files import sha256, to_json, write_atomic
from lensdist.models.config import (
    EncoderConfig,
)
from lensdist.owners import temporary
from lensdist.tensors import write_safetensors

FORMAT = 1
WEIGHTS = "model.safetensors"
CONFIG = "config.json"
Described = tuple[dict[str, Any], dict[str, Tensor]]
"""What an export holds: its `config.json`, and its tensors by name."""

PREPROCESS = "preprocess."  # prefix, among the weights, of the preprocessing's own tensors


def write_export(
    folder: Path,
    model: nn.Module,
    description: dict[str, Any],
    preprocess: Mapping[str, Tensor] | None = None,
) -> dict[str, str]:
    """Write an export; `config.json`, which names the weights' hash, comes last.

    `preprocess` holds the preprocessing's own tensors, which are kept beside the weights.

    Returns:
        The SHA-256 of each file, by name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {k: v.detach().cpu() for k, v in model.state_dict().items()}
    weights |= {PREPROCESS + k: v.cpu() for k, v in (preprocess or {}).items()}
    beside = temporary(folder / WEIGHTS)
    try:
        _, digest = write_safetensors(beside, weights)
        beside.replace(folder / WEIGHTS)
    finally:
        beside.unlink(missing_ok=True)
    facts = {"format": FORMAT, **description, "sha256": {WEIGHTS: digest}}
    write_atomic(folder / CONFIG, to_json(facts))
    return {WEIGHTS: digest, CONFIG: sha256(folder / CONFIG)}


def find_export(path: Path) -> Path:
    """The export folder that `path`, a run or an export, means.

    Raises:
        UserError: it is neither.
    """
    for folder in (path, path / "export"):
        if (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file():
            return folder
    raise UserError(f"{path} holds no exported model; give a finished run or its export/ folder")


def read_export(path: Path) -> Described:
    """Description and weights of an export, verified.

    Raises:
        UserError: it is damaged, of another version, or no export.
    """
    folder = find_export(path)
    try:
        description = json.loads((folder / CONFIG).read_text())
        data = (folder / WEIGHTS).read_bytes()
        wanted = description["sha256"][WEIGHTS]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UserError(f"{folder} is not a whole export: {e}") from e
    if description.get("format") != FORMAT:
        raise UserError(
            f"{folder} is of format {description.get('format')}; this version reads {FORMAT}"
        )
    if hashlib.sha256(data).hexdigest() != wanted:
        raise UserError(f"{folder / WEIGHTS} was damaged or changed after it was exported")
    try:
        return description, parse_safetensors(data)
    except SafetensorError as e:
        raise UserError(f"{folder / WEIGHTS} is no safetensors file: {e}") from e


def encoder_of(
    path: Path, wanted: EncoderConfig, key: str = "model"
) -> tuple[Preprocess, dict[str, Tensor]]:
    """Preprocessing and encoder weights of a pretrained model, for a network of its shape.

    `key` is where a configuration says `wanted`.

    Raises:
        UserError: there is none, it is damaged, or its encoder is of another shape.
    """
    description, weights = read_export(path)
    model = description.get("model")
    if not isinstance(model, dict):
        raise UserError(f"{path} does not describe its model")
    # An export from before a field existed is of its default.
    fields = EncoderConfig.model_fields.items()
    theirs = {field: model.get(field, known.get_default()) for field, known in fields}
    odd = [f for f in theirs if f != "dropout" and theirs[f] != getattr(wanted, f)]
    if odd:
        first = odd[0]
        raise UserError(
            f"the encoder in {path} has {first} {theirs[first]} but {key}.{first} is "
            f"{getattr(wanted, first)}; set {' '.join(f'{key}.{f}={theirs[f]}' for f in odd)}"
        )
    try:
        preprocess = Preprocess.from_state(description["preprocessing"], under(PREPROCESS, weights))
    except (LookupError, TypeError, ValueError) as e:
        raise UserError(f"{path} does not describe its preprocessing: {e!r}") from e
    return preprocess, under("encoder.", weights)


def under(prefix: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, without it."""
    return {k[len(prefix) :]: v for k, v in weights.items() if k.startswith(prefix)}
