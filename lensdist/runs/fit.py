"""Complete a preset by what the data and the pretrained encoder decide (torch-free).

Image size, bands, the encoder's shape and a lens fit are the preset's only as long as nothing else
says them. What the user sets is kept; where it contradicts the data, the run's own checks say so.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lensdist.config import load
from lensdist.config.compose import compose
from lensdist.config.presets import FOLDER, chosen
from lensdist.config.schema import BaseRun, schema_of
from lensdist.data.manifest import Manifest
from lensdist.models.config import EncoderConfig
from lensdist.tasks.settings import Remedy
from lensdist.tasks.types import Described, ReadExport
from lensdist.utils.errors import UserError
from lensdist.utils.sealed import read_json
from lensdist.utils.yaml_nodes import COMMAND_LINE, Node

log = logging.getLogger(__name__)

Fitted = tuple[BaseRun, list[str]]
"""A configuration, and the settings that the data and the encoder added."""

_MINMAX = "preprocess.scale=minmax"


def described(path: Path) -> Described:
    """Return what an export says of itself, which is checked when its weights are read.

    Raises:
        UserError: there is none.
    """
    for folder in (path / "export", path):
        try:
            return read_json(folder / "config.json"), {}
        except (OSError, ValueError):
            continue
    raise UserError(f"{path} holds no export")


def planned(runs: Mapping[Path, BaseRun]) -> ReadExport:
    """Return a reader that says of runs that are not trained yet what their exports will say."""

    def read(path: Path) -> Described:
        if path not in runs:
            return described(path)
        facts = runs[path].model_dump(mode="json", include={"model", "preprocess"})
        return {**facts, "preprocessing": facts["preprocess"]}, {}

    return read


def load_fitted(config: Path | None, words: list[str]) -> BaseRun:
    """Load the configuration of a command line, with what the data and the encoder decide.

    Raises:
        UserError: see `chosen` and `load`.
    """
    cfg, found = fitted(*chosen(config, words))
    if found:
        log.info("by the data and the encoder: %s", " ".join(found))
    if _MINMAX in found:
        log.warning("%s in place of lens_fit: it fits one band of 150x150 good pixels", _MINMAX)
    return cfg


def fitted(file: Path | Node, settings: Sequence[str], described: ReadExport = described) -> Fitted:
    """Load a configuration, and set what the data and the encoder decide.

    What the user says stays: on the command line, or in a file that is not a preset. What such a
    file takes over from a preset, by `defaults:`, is the preset's.

    Args:
        file: the configuration file, or what `composed` made of it.
        settings: `key=value` of the command line.
        described: reads what an export says of itself.

    Raises:
        UserError: see `load`.
    """
    cfg = load(file, settings, schema=schema_of)
    found: list[str] = []
    if cfg.data.path is None:
        return cfg, found
    for decided_by in (_of_the_encoder, _of_the_data, _of_the_classes):
        wanted = decided_by(cfg, described)
        if not wanted:
            continue
        tree = compose(file, settings, [])
        if any(_is_own(tree, word.partition("=")[0]) for word in wanted):
            continue
        try:
            cfg = load(file, [*found, *wanted, *settings], schema=schema_of)
            found += wanted
        except UserError:  # the preset cannot have that; the run says so, with all that differs
            continue
    return cfg, found


def remedy_for(cfg: BaseRun, manifest: Manifest, read: ReadExport) -> Remedy | None:
    """Return how to make network and preprocessing take the images of a set; None if they do."""
    remedy = cfg.remedy(manifest.image_shape, read)
    if cfg.preprocess.scale == "lens_fit" and (
        remedy.settings if remedy else manifest.pixel_weights
    ):
        return Remedy((*(remedy.settings if remedy else ()), _MINMAX))
    return remedy


def _is_own(tree: Node, key: str) -> bool:
    """Return whether the user sets a key; else it is a preset's, or nobody's."""
    node: Node | None = tree
    for step in key.split("."):
        node = node and node.child(step)
    if node is None or node.where == COMMAND_LINE:
        return node is not None
    return not Path(node.where.file).resolve().is_relative_to(FOLDER.resolve())


def _of_the_data(cfg: BaseRun, read: ReadExport) -> list[str]:
    """Return the settings with which the network takes the images of the set."""
    try:
        assert cfg.data.path is not None
        remedy = remedy_for(cfg, Manifest.load(cfg.data.path), read)
    except UserError:  # the run gives the reason
        return []
    return [*remedy.settings] if remedy else []


def _of_the_classes(cfg: BaseRun, read: ReadExport) -> list[str]:
    """Return the settings that a set without the preset's class needs; an encoder has its own."""
    how, encoder = cfg.preprocess, getattr(cfg, "encoder", None)
    if how.scale != "residual":
        return []
    try:
        if encoder is not None:
            theirs = read(encoder)[0].get("preprocessing") or {}
            name = theirs.get("smooth_class", how.smooth_class)
            same = name == how.smooth_class or theirs.get("scale") != "residual"
            return [] if same else [f"preprocess.smooth_class={json.dumps(name)}"]
        assert cfg.data.path is not None
        manifest = Manifest.load(cfg.data.path)
    except UserError:  # the run gives the reason
        return []
    if how.smooth_class is None or how.family is not None:
        return []
    known = how.smooth_class in manifest.labels or "simulated" in manifest.source
    return [] if known else ["preprocess.smooth_class=null"]


def _of_the_encoder(cfg: BaseRun, read: ReadExport) -> list[str]:
    """Return the settings with which the network has the shape of its pretrained encoder."""
    path = getattr(cfg, "encoder", None)
    wanted = getattr(cfg, "encoder_settings", None)
    if path is None or wanted is None:
        return []
    try:
        theirs = read(path)[0].get("model")
    except UserError:  # the run gives the reason
        return []
    network, key = wanted
    fields = [name for name in EncoderConfig.model_fields if name != "dropout"]
    known: dict[str, Any] = theirs if isinstance(theirs, dict) else {}
    odd = [f for f in fields if f in known and known[f] != getattr(network, f)]
    return [f"{key}.{field}={known[field]}" for field in odd]
