"""Compare a finished run with the configuration given now (torch-free).

This differs from whether a run may continue: one of 6 steps may do 12, but is not one of 12.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lensdist.config.differences import (
    BEFORE,
    LENGTH,
    changes,
    differences,
    drawn_over_its_length,
    unmet,
)
from lensdist.config.loader import raw
from lensdist.config.schema import BaseRun
from lensdist.data.manifest import MANIFEST, Manifest
from lensdist.runs.folder import CONFIG
from lensdist.utils.errors import UserError
from lensdist.utils.files import plain, sha256
from lensdist.utils.sealed import read_json


def is_as_asked(cfg: BaseRun, record: dict[str, Any]) -> str:
    """Return the sentence that a finished run, with this `COMPLETE.json`, is what `cfg` asks for.

    Raises:
        UserError: it is not, or an input that `cfg` names does not exist.
    """
    now = cfg.model_dump(mode="json")
    inputs = other_inputs(record, cfg)
    found = [*unmet(record["config"], now), *inputs]
    if not found:
        rest = changes(record["config"], now)
        alike = f" ({'; '.join(rest)} would change last bits at most)" if rest else ""
        return f"{cfg.run.dir} is complete ({record['steps']} steps); nothing to do{alike}"
    raise UserError(
        f"{cfg.run.dir} was completed with other settings ({'; '.join(found)}); give another "
        f"run.dir{'' if inputs else _going_on(cfg, record, now)}"
    )


def as_begun(cfg: BaseRun) -> BaseRun:
    """Return the configuration as its run began, if that was before a setting existed.

    The run then goes on, and counts as finished, without that the user must name the setting.
    """
    begun, _ = raw(cfg.run.dir / CONFIG)
    for (part, key), then in BEFORE.items():
        own, theirs = getattr(cfg, part), begun.get(part)
        is_default = getattr(own, key) == type(own).model_fields[key].default
        if is_default and isinstance(theirs, dict) and theirs.get(key, then) == then:
            cfg = cfg.model_copy(update={part: own.model_copy(update={key: then})})
    return cfg


def other_inputs(saved: Mapping[str, Any], cfg: BaseRun) -> list[str]:
    """Return the inputs of `cfg` whose content differs from that of a run's inputs.

    `saved` holds `config`, `data`, `encoder` and `weights` from the run's record or from a
    checkpoint; missing ones are not compared.

    Raises:
        UserError: an input does not exist, or is damaged.
    """
    config, found = saved["config"], []
    path = config.get("data", {}).get("path")
    if _other_data(saved, cfg, path):
        found.append(_line("data.path", path, cfg.data.path, "images"))
    key, encoder = _encoder(cfg)
    if saved.get("encoder", encoder) != encoder:
        found.append(_line(key, config.get(key), getattr(cfg, key, None), "weights"))
    weights = named_weights(cfg)
    if saved.get("weights", weights) != weights:
        found.append(_line("weights", config.get("weights"), getattr(cfg, "weights", None), "ones"))
    return found


def named_weights(cfg: BaseRun) -> dict[str, str]:
    """Return the SHA-256 of torchvision's files in the configuration, by the networks' names.

    Raises:
        UserError: a file does not exist.
    """
    files = cfg.named_weights().items()
    return {key.removeprefix("weights."): _hash(key, file) for key, file in files}


def _encoder(cfg: BaseRun) -> tuple[str, str | None]:
    """Return the setting that names trained weights to start from, and a hash of them."""
    for key, runs in cfg.starts_from().items():
        if isinstance(runs, tuple):
            from lensdist.utils import rng  # NumPy, which `--help` need not wait for

            return key, f"{rng.key(*(_digest(key, run) for run in runs)):016x}"
        return key, _digest(key, runs)
    return "encoder", None


def _other_data(saved: Mapping[str, Any], cfg: BaseRun, before: str | None) -> bool:
    path = cfg.data.path
    if path is None:
        path = cfg.run.dir / "data"
        if not (path / MANIFEST).exists():  # simulated again from settings, which are compared
            return before is not None
    return saved.get("data") not in (None, Manifest.load(path).fingerprint)


def _digest(key: str, path: Path) -> str:
    """Return the hash of the weights of a run or of an export."""
    own = path / "model.safetensors"
    return _hash(key, own if own.is_file() else path / "export" / "model.safetensors")


def _hash(key: str, file: Path) -> str:
    try:
        return sha256(file)
    except OSError as e:
        raise UserError(f"{key}: {file}: {e.strerror}") from e


def _line(key: str, before: Any, now: Any, what: str) -> str:
    before, now = plain(before), plain(now)
    return f"{key}: other {what} in {now}" if before == now else f"{key}: {before} -> {now}"


def _going_on(cfg: BaseRun, record: dict[str, Any], now: dict[str, Any]) -> str:
    """Return how to continue from the run's last state, if only the length differs."""
    if {line.partition(":")[0] for line in unmet(record["config"], now)} - LENGTH:
        return ""
    if differences(record["config"], now):
        whole = drawn_over_its_length(now)
        return f"; its last state cannot be used, since {whole} spans the whole length"
    states = sorted((cfg.run.dir / "checkpoints").glob("step-*/checkpoint.json"))
    try:
        bad = read_json(states[-1])["meta"]["state"]["bad_evals"]
    except (OSError, ValueError, LookupError, TypeError):
        return ""
    train, before = cfg.train, record["config"]["train"]
    if train.early_stop is not None and bad >= train.early_stop:
        return ""  # it would stop immediately
    stopped = before["early_stop"] is not None and bad >= before["early_stop"]
    if train.max_steps is not None:
        longer = train.max_steps > record["steps"]
    else:
        longer = stopped or before["max_steps"] is not None or train.epochs > before["epochs"]
    state = shlex.quote(str(states[-1].parent))
    return f"; to continue from its last state: run.dir=NEW --resume {state}" if longer else ""
