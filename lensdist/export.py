"""The exported model: weights, and all that is needed to use them, in one folder.

export/model.safetensors   the network's weights
       config.json         task, preset, model, labels, preprocessing, metrics

>>> m = lensdist.load("runs/demo/finetune")
>>> m.predict(images)["probs"]        # images in the units found on disk
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_safetensors
from torch import Tensor, nn

from lensdist.data.config import PreprocessConfig
from lensdist.data.preprocess import Preprocess
from lensdist.errors import UserError
from lensdist.files import sha256, to_json, write_atomic
from lensdist.models.classifier import Classifier
from lensdist.models.config import (
    ClassifierConfig,
    EncoderConfig,
    EnsembleConfig,
    MaeConfig,
    MaskConfig,
)
from lensdist.models.ensemble import Ensemble
from lensdist.models.mae import MaskedAutoencoder, pixel_mask
from lensdist.models.masking import make_mask
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
    temporary = folder / f".{WEIGHTS}.{os.getpid()}.tmp"
    _, digest = write_safetensors(temporary, weights)
    temporary.replace(folder / WEIGHTS)
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


def encoder_of(path: Path, wanted: EncoderConfig) -> tuple[Preprocess, dict[str, Tensor]]:
    """Preprocessing and encoder weights of a pretrained model, for a network of its shape.

    Raises:
        UserError: there is none, it is damaged, or its encoder is of another shape.
    """
    description, weights = read_export(path)
    model = description.get("model")
    if not isinstance(model, dict):
        raise UserError(f"{path} does not describe its model")
    for field, described in EncoderConfig.model_fields.items():
        # An export from before a field existed is of its default.
        theirs = model.get(field, described.get_default())
        ours = getattr(wanted, field)
        if field != "dropout" and theirs != ours:
            raise UserError(
                f"the encoder in {path} has {field} {theirs} but model.{field} is {ours}; "
                f"set model.{field}={theirs}"
            )
    try:
        preprocess = Preprocess.from_state(description["preprocessing"], under(PREPROCESS, weights))
    except (LookupError, TypeError, ValueError) as e:
        raise UserError(f"{path} does not describe its preprocessing: {e!r}") from e
    return preprocess, under("encoder.", weights)


def under(prefix: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, without it."""
    return {k[len(prefix) :]: v for k, v in weights.items() if k.startswith(prefix)}


class LoadedModel:
    """A trained model that takes images in the units found on disk.

    Attributes:
        task: `mae`, `finetune` or `common`.
        labels: class names in the order of the logits.
        description: all of `config.json`.
        network: the network itself, in eval mode.
    """

    def __init__(
        self, description: dict[str, Any], weights: dict[str, Tensor], device: str
    ) -> None:
        self.description = description
        self.device = torch.device(device)
        try:
            self.task: str = description["task"]
            self.labels: tuple[str, ...] = tuple(description["labels"])
            self.preprocess = Preprocess.from_state(
                description["preprocessing"], under(PREPROCESS, weights)
            )
            self.mask = MaskConfig(**(description["mask"] if self.task == "mae" else {}))
            with torch.device("meta"):  # takes no memory, whatever sizes are claimed
                self.network = _network(description, self.preprocess.cfg)
        except (
            LookupError,
            AttributeError,
            TypeError,
            ValueError,
            ArithmeticError,
            RuntimeError,
        ) as e:
            raise UserError(f"config.json does not describe a network: {e!r}") from e
        try:
            own = {k: v for k, v in weights.items() if not k.startswith(PREPROCESS)}
            floats = {k: v.float() if v.is_floating_point() else v for k, v in own.items()}
            self.network.load_state_dict(floats, assign=True)
        except RuntimeError as e:
            raise UserError(f"the weights do not fit the described network: {e}") from e
        self.network.to(self.device).eval()

    @torch.no_grad()
    def predict(self, x: npt.ArrayLike, batch: int = 256) -> dict[str, npt.NDArray[Any]]:
        """Apply the model.

        Args:
            x: (N, H, W) or (N, C, H, W), in the units found on disk.
            batch: images at a time; the result does not depend on it beyond rounding.

        Returns:
            Classifier: `logits` and `probs` (N, classes). MAE: `recon` (N, C, H, W) in the units
            of `x`, and `mask` (N, patches), true = hidden from the encoder.

        Raises:
            ValueError: not such images, or not of the size that the model was trained on.
        """
        images = self._checked(x)
        parts = [self._batch(part.to(self.device)) for part in torch.split(images, batch)]
        return {k: torch.cat([p[k] for p in parts]).cpu().numpy() for k in parts[0]}

    def _checked(self, x: npt.ArrayLike) -> Tensor:
        array = np.asarray(x)
        if array.dtype.kind not in "fiu":
            raise ValueError(f"images must be real numbers, not {array.dtype}")
        if array.ndim == 3:
            array = array[:, None]
        size, bands = (self.description["model"][k] for k in ("image_size", "in_channels"))
        if array.ndim != 4 or array.shape[1:] != (bands, size, size) or not len(array):
            raise ValueError(
                f"images of shape {np.shape(x)} do not fit a model of {bands} band(s) and "
                f"{size}x{size} pixels; give (N, {size}, {size}) or (N, {bands}, {size}, {size})"
            )
        with np.errstate(over="ignore"):  # what float32 cannot hold is infinite from here on
            array = np.ascontiguousarray(array, np.float32)
        if not np.isfinite(array).all():
            raise ValueError("images hold NaN or infinite pixels; mask or fill them first")
        blank = np.flatnonzero(array.max((1, 2, 3)) == array.min((1, 2, 3)))
        if self.preprocess.slow and len(blank):
            raise ValueError(f"image {blank[0]} is blank: there is no lens to fit in it")
        return torch.from_numpy(array)

    def _batch(self, raw: Tensor) -> dict[str, Tensor]:
        x = self.preprocess(raw)
        if self.task != "mae":
            logits = self.network(x)
            return {"logits": logits, "probs": logits.softmax(1)}
        drawn, mask = self.reconstruct(x)
        return {"recon": self.preprocess.inverse(drawn, raw), "mask": mask}

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What a masked autoencoder makes of preprocessed images (N, C, H, W), and its mask.

        Trained on hidden pixels only, what it draws of the others means nothing: those are `x`'s.
        """
        patch = self.description["model"]["patch_size"]
        # One draw for all: what is hidden must not depend on an image's place among others.
        samples = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        mask = make_mask(x, patch, self.mask, 0, samples)
        drawn = self.network(x, mask)
        if self.description.get("loss") == "masked":
            drawn = torch.where(pixel_mask(mask, patch), drawn, x)
        return drawn, mask


def _network(description: dict[str, Any], preprocess: PreprocessConfig) -> nn.Module:
    model = description["model"]
    if description["task"] == "mae":
        return MaskedAutoencoder(MaeConfig(**model))
    if description["task"] == "finetune":
        return Classifier(ClassifierConfig(**model), len(description["labels"]))
    if description["task"] == "common":
        cfg = EnsembleConfig(**model)
        bands, _ = preprocess.seen(cfg.in_channels, cfg.image_size)
        return Ensemble(cfg, len(description["labels"]), bands)
    raise UserError(f"task {description['task']!r} is not one that this version can load")


def load(path: str | os.PathLike[str], device: str = "cpu") -> LoadedModel:
    """Load a finished run or an export.

    Raises:
        UserError: there is none, or it is damaged.
    """
    return LoadedModel(*read_export(Path(path)), device)
