"""Convert a published weight file to an export folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lensdist.data.config import PreprocessConfig
from lensdist.data.transforms import Preprocess
from lensdist.export.artifact import write_export
from lensdist.tasks.registry import task_class
from lensdist.utils.errors import RunError, UserError
from lensdist.utils.files import sha256
from lensdist.utils.staging import Staging, check_free
from lensdist.weights.choices import Choices
from lensdist.weights.files import read_weights
from lensdist.weights.published import Published, recognise


def convert(file: Path, dest: Path, choices: Choices) -> tuple[Published, dict[str, Any]]:
    """Write the network in `file` as an export to `dest`, which must be new.

    Args:
        file: written by `torch.save` or safetensors.
        dest: a folder that does not exist yet, or is empty.
        choices: settings that the file does not hold.

    Returns:
        The network, and its description: `assumed` lists what neither the file nor the choices set.

    Raises:
        UserError: the file cannot be imported this way; nothing was written.
        RunError: the disk is full.
    """
    check_free(Path(os.path.realpath(dest)))
    read = read_weights(file)
    try:
        found = recognise(read.tensors, choices, read.module)
        names = _labels(found, choices.labels)
        preprocess = _preprocess(found, choices)
    except UserError as error:
        raise UserError(f"{file} cannot be imported: {error}") from error
    kind = task_class(found.task)
    task = kind(kind.settings.model_validate({"model": found.model}), names, preprocess)
    description = {
        **task.describe(),
        "task": found.task,
        "preset": "imported",
        "labels": list(names),
        "preprocessing": preprocess.state(),
        "metrics": {},
        "init": "published",
        "source": {
            "file": file.name,
            "sha256": sha256(file),
            "kind": read.kind,
            "classes": list(read.classes),
            "left_out": list(read.beside),
        },
        "assumed": [
            *found.assumed,
            *choices.assumed(found.seen, found.model.in_channels, found.scale, found.labels),
        ],
    }
    if found.note:
        description["note"] = found.note
    staging = Staging(dest)
    try:
        write_export(staging.folder, found.network, description)
        staging.publish()
    except OSError as error:
        raise RunError(f"cannot write {dest}: {error.strerror}") from error
    finally:
        staging.discard()
    return found, description


def _preprocess(found: Published, choices: Choices) -> Preprocess:
    cfg = PreprocessConfig(scale=choices.scale(found.scale))
    if task_class(found.task).draws and (
        choices.mean or choices.std or choices.preprocess == "imagenet"
    ):
        raise UserError(
            "it draws images, and would have to draw others; leave out --mean, --std and "
            "--preprocess imagenet"
        )
    normal = choices.normalisation(found.seen)
    bands = found.model.in_channels
    mean, std = normal or ([0.0] * bands, [1.0] * bands)
    return Preprocess(cfg, mean, std, normalise=normal is not None)


def _labels(found: Published, given: tuple[str, ...] | None) -> tuple[str, ...]:
    if given is not None and not found.classes:
        raise UserError("it is an autoencoder, which has no classes; leave out --labels")
    names = found.labels if given is None else given
    if len(set(names)) < len(names) or not all(names):
        raise UserError(f"--labels {','.join(names)} names a class twice, or one without a name")
    if len(names) != found.classes:
        where = "the recipe's labels are" if given is None else "--labels names"
        raise UserError(
            f"its last layer has {found.classes} classes, but {where} {len(names)} "
            f"({', '.join(names)}); give --labels with {found.classes} names in its order"
        )
    return names
