"""The model card of an export: `README.md`, in the form that Hugging Face's hub shows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lensdist import __version__
from lensdist.export.model import LoadedModel
from lensdist.metrics.report import escape, number, table
from lensdist.phases import WEIGHTS
from lensdist.utils.files import write_atomic
from lensdist.utils.sealed import read_json, unsealed

CARD = "README.md"

_USE = {
    "safetensors": 'import lensdist\n\nmodel = lensdist.load("this-folder")\n'
    'model.predict("new-images")  # files, or an array of images in the units found on disk',
    "onnx": 'import onnxruntime\n\nsession = onnxruntime.InferenceSession("model.onnx")\n'
    "session.run(None, inputs)  # see `inputs` in config.json",
    "pt2": 'import torch\n\nmodel = torch.export.load("model.pt2").module()  # of whom you trust\n'
    "model(*inputs)  # see `inputs` in config.json",
}


def scored(run: Path, digest: str | None) -> dict[str, dict[str, Any]]:
    """Return the scores of a run's weights by split, from its `eval/`.

    Scores of other weights, and files that cannot be read, are left out.
    """
    found = {}
    for file in sorted((run / "eval").glob("*.safetensors")):  # one for each split
        try:
            facts = unsealed(read_json(file.with_suffix(".json")))
            same = digest is not None and facts["weights"].get(WEIGHTS) == digest
        except (OSError, ValueError, LookupError, AttributeError, TypeError):
            continue
        if same and isinstance(facts.get("metrics"), dict):
            found[file.stem] = facts["metrics"]
    return found


def write_card(
    folder: Path,
    kind: str,
    model: LoadedModel,
    facts: Mapping[str, Any],
    scores: Mapping[str, Mapping[str, Any]],
) -> Path:
    """Write the card beside the weights.

    Args:
        folder: of the export.
        kind: `safetensors`, `onnx` or `pt2`.
        model: the exported one.
        facts: the content of `config.json`.
        scores: by split, with their intervals.

    Raises:
        OSError: as `files.write_atomic`.
    """
    about = next(iter((type(model.does).__doc__ or "").strip().splitlines()), "")
    bands, height, width = model.does.cfg.image_shape
    how = facts.get("metrics") or {}
    by = str(how.get("selected_by") or "how they were chosen is not known")
    chosen = f"Weights: {by.removeprefix('nothing: ')}"
    if isinstance(value := how.get("val"), int | float):
        chosen += f", {number(value)} at step {how.get('step')}"
    rows = [{"split": name, **each} for name, each in scores.items()]
    data = facts.get("data") or {}
    images = facts.get("images") or {}
    scale = data.get("pixel_scale_arcsec")
    trained = [
        f"- classes: {escape(', '.join(model.labels)) or 'none'}",
        f"- images: {bands} x {height} x {width} pixels"
        + (f" of {scale:g} arcsec" if isinstance(scale, int | float) else ""),
        *(f"- {escape(str(what))}: {n:,} images" for what, n in images.items()),
        f"- set: fingerprint `{str(data.get('fingerprint', 'not known'))[:16]}`",
        f"- initial weights: {escape(str(facts.get('init', 'not known')))}",
    ]
    unlike = (
        "`predict` compares each image with the training images and flags those that are unlike "
        "them (`unlike`, `flag`): do not use answers for these."
        if model.likeness is not None
        else "Nothing tells whether an image is like the training images."
    )
    needs = model.preprocess.needs
    parts = [
        f"---\nlibrary_name: lensdist\ntags: [gravitational-lensing, {_word(model.task)}]\n---",
        f"# {escape(str(facts.get('preset') or model.task))}, task {escape(model.task)}",
        *([about] if about else []),
        f"## Use\n\n```python\n{_USE[kind]}\n```",
        "## Training data\n\n" + "\n".join(trained),
        f"## Scores\n\n{escape(chosen)}.\n\n"
        + (f"{table(rows)}\n\nBrackets are 95 % intervals." if rows else "It was not scored."),
        f"## Preprocessing\n\n`scale: {model.preprocess.cfg.scale}`, part of the model: give it "
        "images in the units found on disk."
        + (f" They must share {needs} with the training images." if needs else ""),
        "## Limits\n\nThe scores are on images of the set above. On other instruments, noise or "
        f"selections expect less. {unlike}",
        f"## Origin\n\nlensdist {__version__}; weights sha256 "
        f"`{(facts.get('exported_from') or facts.get('sha256') or {}).get(WEIGHTS, 'not known')}`; "
        "`config.json` has all settings. This card names no licence: add one before you publish.",
    ]
    return write_atomic(folder / CARD, "\n\n".join(parts) + "\n")


def _word(task: str) -> str:
    """Return a tag: the name of a task, or of the class of a user's own."""
    return "".join(c for c in task.rpartition(":")[2] if c.isalnum() or c in "-_")
