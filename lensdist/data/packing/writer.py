"""Writes a packed set one batch at a time, whole or not at all (torch-free).

Samples are streamed to a hidden folder beside the destination, so memory does not grow with the
set, and the folder gets its name only once every byte is on the disk: a crash leaves no half set.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self, cast

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue

from lensdist.data.manifest import (
    FILES,
    MANIFEST,
    REPORT,
    DType,
    FileInfo,
    FileName,
    Kind,
    Manifest,
    file_info,
)
from lensdist.data.packing.columns import Column
from lensdist.data.packing.report import Report
from lensdist.data.packing.statistics import image_moments, join_moments
from lensdist.data.splits import (
    SPLITS,
    TRAIN,
    UNDECIDED,
    assign_splits,
    content_digest,
    count_classes,
)
from lensdist.errors import UserError
from lensdist.files import to_json
from lensdist.staging import Staging

Array = npt.NDArray[Any]


class PackedWriter:
    """Streams samples into a packed set. Leaving its `with` block before `finish` leaves nothing.

    Args:
        dest: the folder to make; must not exist, or be empty.
        labels: class names in label order; empty for pairs and unlabelled images.
        seed: of the splits.
        source: where the samples come from, for the manifest (JSON values).
        kind: `classify`, `pairs` (images are LR, targets HR) or `images`.
        pixel_scale_arcsec, psf_fwhm_arcsec, zero_point_mag: of the images, where known.
        dtype: `float32`, or `float16` for images scaled to 0..1.

    Raises:
        UserError: `dest` holds something already; files of a user are never touched.
    """

    def __init__(
        self,
        dest: str | os.PathLike[str],
        *,
        labels: Sequence[str],
        seed: int,
        source: Mapping[str, JsonValue],
        kind: Kind = "classify",
        pixel_scale_arcsec: float | None = None,
        psf_fwhm_arcsec: float | None = None,
        zero_point_mag: float | None = None,
        dtype: DType = "float32",
    ) -> None:
        if kind == "classify" and not labels:
            raise ValueError("kind='classify' needs labels")
        self._staging = Staging(dest)
        self._folder = self._staging.folder
        self.report = Report()
        """Written to `report.json` by `finish`."""
        self._kind: Kind = kind
        self._labels = list(labels)
        self._seed = seed
        self._dtype: DType = dtype
        self._facts: dict[str, Any] = {
            "source": dict(source),
            "pixel_scale_arcsec": pixel_scale_arcsec,
            "psf_fwhm_arcsec": psf_fwhm_arcsec,
            "zero_point_mag": zero_point_mag,
        }
        self._columns: dict[str, Column] = {}
        self._rows = (self._folder / FILES).open("w", encoding="utf-8", newline="\n")
        self._count = 0
        self._contents: list[bytes] = []
        self._label: list[Array] = []
        self._mass: list[Array] = []
        self._supplied: list[Array] = []
        self._moments: list[Array] = []

    def add(
        self,
        image: Array,
        *,
        label: int,
        name: str,
        mass: float = math.nan,
        target: Array | None = None,
        truth: Array | None = None,
        badpix: Array | None = None,
        weight: Array | None = None,
        split: str | None = None,
        file_sha256: str = "",
    ) -> None:
        """Add one sample: `add_batch` without the leading axis."""
        self.add_batch(
            image[None],
            [label],
            [name],
            masses=[mass],
            targets=None if target is None else target[None],
            truths=None if truth is None else truth[None],
            badpix=None if badpix is None else badpix[None],
            weights=None if weight is None else weight[None],
            splits=None if split is None else [split],
            file_sha256s=[file_sha256],
        )

    def add_batch(
        self,
        images: Array,
        labels: Sequence[int] | Array,
        names: Sequence[str],
        masses: Sequence[float] | Array | None = None,
        targets: Array | None = None,
        *,
        truths: Array | None = None,
        badpix: Array | None = None,
        weights: Array | None = None,
        splits: Sequence[str] | None = None,
        file_sha256s: Sequence[str] | None = None,
    ) -> None:
        """Add N samples.

        Args:
            images: (N, C, H, W), one shape for the whole set.
            labels: (N,) indices into the class names; -1 is unlabelled.
            names: N names, relative to the source.
            masses: (N,) axion masses, eV; NaN where unknown.
            targets: (N, C, H', W') high-resolution partners, of kind `pairs`.
            truths: the targets without noise, where they are known; in all samples or in none.
            badpix: (N, C, H, W) bool, true where a pixel is bad. Bad pixels are stored as 0.
            weights: (N, C, H, W) inverse variances or any weights >= 0.
            splits: N of `train`, `val`, `test`, where they came with the data; what is left to us
                is decided by `finish`.
            file_sha256s: N hashes of the source files.

        Raises:
            UserError: float16 was asked for and an image leaves 0..1, or a good pixel is not
                finite.
            ValueError: shapes or labels do not fit.
        """
        if badpix is not None:
            images = np.where(badpix, 0, images)
        n = len(images)
        self._check(images, labels, names, targets, truths, weights)
        stored = images.astype(self._dtype, copy=False)
        optional = {
            "targets": (self._dtype, 0, targets),
            "truths": (self._dtype, 0, truths),
            "badpix": ("bool", 0, badpix),
            "weights": ("float32", 1, weights),
        }
        self._column("images", self._dtype, stored.shape[1:], 0).append(stored, n)
        for key, (dtype, fill, values) in optional.items():
            if values is not None or key in self._columns:
                row = () if values is None else values.shape[1:]
                self._column(key, dtype, row, fill).append(values, n)
        for i, name in enumerate(names):
            content = content_digest(images[i], None if targets is None else targets[i])
            self._contents.append(content)
            row_facts = {
                "name": name,
                "sha256": file_sha256s[i] if file_sha256s is not None else "",
                "content": content.hex(),
                "shape": list(images.shape[1:]),
            }
            self._rows.write(json.dumps(row_facts) + "\n")
        unknown = np.full(n, math.nan)
        self._mass.append(unknown if masses is None else np.asarray(masses, np.float64))
        self._label.append(np.asarray(labels, np.int16))
        codes = [UNDECIDED] * n if splits is None else [SPLITS.index(s) for s in splits]
        self._supplied.append(np.array(codes, np.uint8))
        self._moments.append(image_moments(stored, badpix))
        self._count += n

    def _column(self, key: str, dtype: str, row: tuple[int, ...], fill: int) -> Column:
        if key not in self._columns:
            path = self._folder / f"{key}.npy"
            self._columns[key] = Column(path, dtype, row, fill, self._count)
        return self._columns[key]

    def _check(
        self,
        images: Array,
        labels: Sequence[int] | Array,
        names: Sequence[str],
        targets: Array | None,
        truths: Array | None,
        weights: Array | None,
    ) -> None:
        if images.ndim != 4 or not len(images) == len(labels) == len(names):
            raise ValueError(f"images of shape {images.shape}: not one (C, H, W) a label and name")
        if (targets is not None) != (self._kind == "pairs"):
            raise ValueError(f"targets go with kind='pairs', and this set is of {self._kind!r}")
        if self._count and (truths is not None) != ("truths" in self._columns):
            raise ValueError(f"{names[0]}: truths go with all samples of a set, or with none")
        if truths is not None and (targets is None or truths.shape != targets.shape):
            raise ValueError(f"{names[0]}: truths are not of the targets' shape")
        low, high = (-1, len(self._labels)) if self._kind == "classify" else (-1, 0)
        if not all(low <= label < high for label in labels):
            raise ValueError(f"a label lies outside {low}..{high - 1}")
        given = {"images": images, "targets": targets, "truths": truths, "weights": weights}
        for key, values in given.items():
            if values is None:
                continue
            if key in self._columns and values.shape[1:] != self._columns[key].row:
                row = self._columns[key].row
                raise ValueError(f"{names[0]}: {key} are {row} a sample, not {values.shape[1:]}")
            # As it will be stored: float32 cannot hold all that float64 can.
            stored = "float32" if key == "weights" else self._dtype
            with np.errstate(over="ignore"):
                good = np.isfinite(values.astype(stored, copy=False))
            if key == "weights":
                good &= values >= 0
            bad = ~good.reshape(len(values), -1).all(axis=1)
            if bad.any():
                odd = "NaN, infinity" + (" or less than 0" if key == "weights" else "")
                raise UserError(f"{names[int(bad.argmax())]}: {key} hold {odd}")
            if key in ("images", "targets"):
                check_scaled(self._dtype, values.min(), values.max(), names[0])

    def finish(self) -> Manifest:
        """Decide the splits, write the manifest and give the folder its name.

        Raises:
            UserError: no sample was added, or the destination came into being meanwhile.
            OSError: the disk is full.
        """
        if not self._count:
            raise UserError(f"no sample was given to pack into {self._staging.dest}")
        label = np.concatenate(self._label)
        split = assign_splits(self._contents, label, self._seed, np.concatenate(self._supplied))
        mass = np.concatenate(self._mass)
        for column in self._columns.values():
            column.close()
        small = {"labels": label, "split": split} | ({} if np.isnan(mass).all() else {"mass": mass})
        for key, values in small.items():
            np.save(self._folder / f"{key}.npy", values)
        self._rows.close()
        (self._folder / REPORT).write_text(to_json(self.report.as_json()) + "\n")

        manifest = self._manifest(label, split)
        manifest = manifest.model_copy(update={"fingerprint": manifest.hash()})
        manifest = manifest.model_copy(update={"seal": manifest.hash(sealed=True)})
        (self._folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n")
        self._staging.publish()
        return manifest

    def _manifest(self, label: Array, split: Array) -> Manifest:
        files: dict[FileName, FileInfo] = {
            cast(FileName, path.name): file_info(path)
            for path in sorted(self._folder.iterdir())
            if path.name != REPORT
        }
        train = split == TRAIN
        targets = self._columns.get("targets")
        return Manifest(
            kind=self._kind,
            labels=self._labels,
            count=self._count,
            image_shape=cast(tuple[int, int, int], self._columns["images"].row),
            target_shape=cast(tuple[int, int, int], targets.row) if targets else None,
            dtype=self._dtype,
            counts=count_classes(label, split, self._labels),
            seed=self._seed,
            statistics=join_moments(np.concatenate(self._moments)[train if train.any() else ...]),
            files=files,
            report=file_info(self._folder / REPORT),
            fingerprint="",
            **self._facts,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._staging.discard()  # nothing is there after `finish`


def check_scaled(dtype: DType, low: float, high: float, name: str) -> None:
    """Refuse float16 for images that it would damage.

    Raises:
        UserError: the dtype is float16 and the pixels run from below 0 or to above 1.
    """
    if dtype == "float16" and (low < 0 or high > 1):
        raise UserError(
            "float16 is for images scaled to 0..1 (raw images lose their faint pixels in it), and "
            f"{name} runs from {low:g} to {high:g}: use --dtype float32"
        )
