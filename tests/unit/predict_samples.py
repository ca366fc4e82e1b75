"""Models that are quickly asked and files as people have them, to test `lensdist predict` with."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from astropy.io import fits

from lensdist.data.config import PreprocessConfig
from lensdist.data.transforms import Preprocess
from lensdist.inference.inputs import Input, find
from lensdist.tasks.registry import task_class

Array = npt.NDArray[Any]
DESCRIPTION = {"preset": "best\n", "sha256": {"model.safetensors": "0123456789abcdef" * 4}}


class Classifier:
    """Its logits are an image's mean and its bad pixels; keeps what it was called with."""

    task = "finetune"
    labels: tuple[str, ...] = ('a,"b"', "c d\u00e9")
    likeness = None

    def __init__(self, **model: Any) -> None:
        self.description: dict[str, Any] = {**DESCRIPTION, "task": self.task}
        kind = task_class(self.task)
        cfg = kind.settings.model_validate({"model": model})
        self.does = kind(cfg, self.labels, Preprocess(PreprocessConfig(), [0.0], [1.0]))
        self.calls: list[tuple[int, ...]] = []

    def predict(self, x: Array, batch: int = 256, good: Array | None = None) -> dict[str, Array]:
        self.calls.append(x.shape)
        if x.shape[1:] != (1, 8, 8):
            raise ValueError(f"images of shape {x.shape} do not fit")
        if (x > 1e6).any():
            raise ValueError("an image is too bright")
        mean = x.mean((1, 2, 3), dtype=np.float32)
        bad = np.zeros_like(mean) if good is None else (~good).sum((1, 2, 3)).astype(np.float32)
        logits = np.stack([mean, bad], 1)
        odds = np.exp(logits - logits.max(1, keepdims=True))
        return {"logits": logits, "probs": odds / odds.sum(1, keepdims=True)}


class SuperResolver(Classifier):
    """Each pixel becomes `factor` x `factor` of its mean, which rise from left to right."""

    task = "sr"
    labels = ()

    def __init__(self, factor: int = 2, sigma: bool = False, **model: Any) -> None:
        super().__init__(factor=factor, **model)
        self.factor, self.sigma = factor, sigma

    def predict(self, x: Array, batch: int = 256, good: Array | None = None) -> dict[str, Array]:
        self.calls.append(x.shape)
        f = self.factor
        if min(x.shape[2:]) < 8:
            raise ValueError(f"frames of shape {x.shape} do not fit")
        image = x.repeat(f, 2).repeat(f, 3) + np.resize(np.linspace(-1, 1, f), x.shape[3] * f)
        if good is not None:
            image = np.where(good.repeat(f, 2).repeat(f, 3), image, np.nan)
        found = {"image": image.astype(np.float32)}
        return found | ({"sigma": np.full_like(found["image"], 0.5)} if self.sigma else {})


def pixels(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).random(shape or (8, 8)).astype(np.float32)


def inputs(*words: object, dest: Path) -> list[Input]:
    return find([str(word) for word in words], dest)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def sky_hdu(array: Array, **cards: Any) -> Any:
    hdu = fits.ImageHDU(array, name="SCI")
    hdu.header.update({
        "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 10.0, "CRVAL2": -5.0, "CRPIX1": 4.0,
        "CRPIX2": 5.0, "CD1_1": -2e-5, "CD2_2": 2e-5, "BUNIT": "electron/s", **cards,
    })  # fmt: skip
    return hdu


def mixed(root: Path) -> Path:
    """Forms, shapes and bad files mixed: 7 good of 8 x 8, 4 of other shapes, 8 bad ones."""
    (root / "deep" / "er").mkdir(parents=True)
    for i in (9, 10):
        np.save(root / f"lens{i}.npy", pixels(i))
    np.save(root / "deep" / "banded.npy", pixels(1, 1, 8, 8).astype(">f8"))
    np.savez(root / "deep" / "er" / "masked.npz", image=pixels(2), mask=pixels(2) < 0.2)
    np.savez(root / "unmasked.npz", image=pixels(3), mask=np.zeros((8, 8)))
    fits.HDUList([fits.PrimaryHDU(), sky_hdu(pixels(4))]).writeto(root / "sky.fits")
    fits.PrimaryHDU(pixels(5)).writeto(root / "plain.fit")
    np.save(root / "large.npy", pixels(6, 12, 10))
    np.save(root / "bands.npy", pixels(7, 3, 8, 8))
    np.save(root / "large2.npy", pixels(8, 12, 10))
    np.save(root / "large3.npy", pixels(8, 10, 12))
    # Bad.
    np.save(root / "bad_nan.npy", np.where(pixels(1) > 0.5, np.nan, 1))
    np.save(root / "bad_objects.npy", np.array([print, 1.0], dtype=object), allow_pickle=True)
    np.save(root / "bad_constant.npy", np.ones((8, 8)))
    (root / "bad_cut.fits").write_bytes((root / "sky.fits").read_bytes()[: 2880 * 2 + 100])
    (root / "bad_empty.npy").touch()
    (root / "bad_text.npz").write_text("hello")
    (root / "bad_link.npy").symlink_to("bad_link.npy")
    os.mkfifo(root / "z_pipe.npy")
    return root


BAD = {
    "bad_nan": "it has NaN or infinity where no mask says so",
    "bad_objects": "builtins.print",
    "bad_constant": "it is constant",
    "bad_cut": "it is ",
    "bad_empty": "it is empty",
    "bad_text": "it is damaged",
    "bad_link": "it cannot be read",
    "z_pipe": "it is not a regular file",
}


def means(image: Array, f: int) -> Array:
    """Of blocks of f x f."""
    h, w = image.shape
    found: Array = image.reshape(h // f, f, w // f, f).mean((1, 3))
    return found
