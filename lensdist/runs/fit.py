"""Complete a preset by what the data and the pretrained encoder decide (torch-free).

Image size, bands and the encoder's shape are the preset's only as long as nothing else says them.
What the user sets is kept; where it contradicts the data, the run's own checks say so.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from lensdist.config import load
from lensdist.config.presets import chosen
from lensdist.config.schema import BaseRun, schema_of
from lensdist.data.manifest import Manifest
from lensdist.models.config import EncoderConfig
from lensdist.utils.errors import UserError
from lensdist.utils.sealed import read_json

log = logging.getLogger(__name__)


def load_fitted(config: Path | None, words: list[str]) -> BaseRun:
    """Load the configuration of a command line; of a preset, with what the data decide.

    Raises:
        UserError: see `chosen` and `load`.
    """
    file, settings = chosen(config, words)
    cfg = load(file, settings, schema=schema_of)
    if config is not None or cfg.data.path is None:
        return cfg
    own = {word.partition("=")[0].strip() for word in settings}
    found: list[str] = []
    for decided_by in (_of_the_encoder, _of_the_data):
        wanted = decided_by(cfg)
        if not wanted or own & {word.partition("=")[0] for word in wanted}:
            continue
        try:
            cfg = load(file, [*found, *wanted, *settings], schema=schema_of)
            found += wanted
        except UserError:  # the preset cannot have that; the run says so, with all that differs
            continue
    if found:
        log.info("by the data and the encoder: %s", " ".join(found))
    return cfg


def _of_the_data(cfg: BaseRun) -> list[str]:
    """Return the settings with which the network takes the images of the set."""
    try:
        assert cfg.data.path is not None
        shape = Manifest.load(cfg.data.path).image_shape
        remedy = cfg.remedy(shape, _described)
    except UserError:  # the run gives the reason
        return []
    return [*remedy.settings] if remedy else []


def _of_the_encoder(cfg: BaseRun) -> list[str]:
    """Return the settings with which the network has the shape of its pretrained encoder."""
    path = getattr(cfg, "encoder", None)
    wanted = getattr(cfg, "encoder_settings", None)
    if path is None or wanted is None:
        return []
    try:
        theirs = _described(path)[0].get("model")
    except UserError:  # the run gives the reason
        return []
    network, key = wanted
    fields = [name for name in EncoderConfig.model_fields if name != "dropout"]
    known: dict[str, Any] = theirs if isinstance(theirs, dict) else {}
    odd = [f for f in fields if f in known and known[f] != getattr(network, f)]
    return [f"{key}.{field}={known[field]}" for field in odd]


def _described(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what an export says of itself, which is checked when its weights are read."""
    for folder in (path / "export", path):
        try:
            return read_json(folder / "config.json"), {}
        except (OSError, ValueError):
            continue
    raise UserError(f"{path} holds no export")
