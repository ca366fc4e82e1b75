"""Write a packed set sample by sample, whole or not at all (torch-free).

Samples are streamed to a hidden folder beside the destination, so memory does not grow with the
set. The folder gets its name only when every byte is on the disk: a crash leaves no half set.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
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
from lensdist.data.packing.systems import units
from lensdist.data.splits import (
    SPLITS,
    TRAIN,
    UNDECIDED,
    assign_splits,
    content_digest,
    count_classes,
)
from lensdist.utils.errors import UserError
from lensdist.utils.staging import Staging

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Instrument:
    """The facts known of the instrument that took the images; None: unknown."""

    pixel_scale_arcsec: float | None = None
    psf_fwhm_arcsec: float | None = None
    zero_point_mag: float | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample of a packed set."""

    image: Array
    """(C, H, W), one shape for the whole set."""
    label: int
    """Index into the class names; -1 is unlabelled."""
    name: str
    """The file that it was made of, relative to the source."""
    mass: float = math.nan
    """Axion mass, eV; NaN where unknown."""
    target: Array | None = None
    """(C, H', W'), the high-resolution partner, in sets of kind `pairs`."""
    truth: Array | None = None
    """The target without noise; all samples of a set have one, or none has."""
    badpix: Array | None = None
    """(C, H, W) bool, true where a pixel is bad. Bad pixels are stored as 0."""
    weight: Array | None = None
    """(C, H, W), inverse variances or any weights >= 0."""
    split: str | None = None
    """`train`, `val` or `test`, if the data sets it; None: `finish` decides."""
    file_sha256: str = ""
    """Hash of the source file."""
    group: str = ""
    """The system that the image shows; images of one system are in one split."""
    psf: Array | None = None
    """(1 or C, h, w); all samples of a set have one, or none has."""
    facts: Mapping[str, JsonValue] = field(default_factory=dict)
    """What else is known of it, for `files.jsonl`: `ra`, `dec` (degrees) and `redshift`."""


@dataclass(slots=True)
class _Facts:
    """The facts of a sample that stay in memory until `finish`."""

    content: bytes
    group: str
    label: int
    mass: float
    split: int
    moments: Array


class PackedWriter:
    """The writer of a packed set. Leaving its `with` block before `finish` leaves nothing.

    Args:
        dest: the folder to make; it must not exist, or be empty.
        labels: class names in label order; empty for pairs and unlabelled images.
        seed: seed of the splits.
        source: where the samples come from, for the manifest (JSON values).
        kind: `classify`, `pairs` (images are LR, targets HR) or `images`.
        instrument: facts for the manifest.
        dtype: `float32`, or `float16` for images scaled to 0..1.
        report: `finish` writes it to `report.json`.

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
        instrument: Instrument | None = None,
        dtype: DType = "float32",
        report: Report | None = None,
    ) -> None:
        if kind == "classify" and not labels:
            raise ValueError("kind='classify' needs labels")
        self._staging = Staging(dest)
        self._folder = self._staging.folder
        self._kind: Kind = kind
        self._labels = list(labels)
        self._seed = seed
        self._source = dict(source)
        self._instrument = instrument or Instrument()
        self._dtype: DType = dtype
        self._report = report or Report()
        self._columns: dict[str, Column] = {}
        self._rows = (self._folder / FILES).open("w", encoding="utf-8", newline="\n")
        self._facts: list[_Facts] = []

    def add(self, sample: Sample) -> None:
        """Add a sample.

        Raises:
            UserError: float16 was asked for and an image leaves 0..1, or a good pixel is not
                finite.
            ValueError: shapes or the label do not fit.
        """
        image = sample.image if sample.badpix is None else np.where(sample.badpix, 0, sample.image)
        arrays = {
            "images": image,
            "targets": sample.target,
            "truths": sample.truth,
            "weights": sample.weight,
        }
        self._check(sample, arrays)
        stored = image.astype(self._dtype, copy=False)
        self._append("images", self._dtype, 0, stored)
        self._append("targets", self._dtype, 0, sample.target)
        self._append("truths", self._dtype, 0, sample.truth)
        self._append("badpix", "bool", 0, sample.badpix)
        self._append("weights", "float32", 1, sample.weight)
        self._append("psf", "float32", 0, sample.psf)
        content = content_digest(image, sample.target)
        row: dict[str, JsonValue] = {
            **sample.facts,
            "name": sample.name,
            "sha256": sample.file_sha256,
            "content": content.hex(),
            "shape": list(image.shape),
        }
        if sample.group:
            row["group"] = sample.group
        self._rows.write(json.dumps(row) + "\n")
        split = UNDECIDED if sample.split is None else SPLITS.index(sample.split)
        moments = image_moments(stored, sample.badpix)
        facts = _Facts(content, sample.group, sample.label, sample.mass, split, moments)
        self._facts.append(facts)

    def _append(self, key: str, dtype: str, fill: int, values: Array | None) -> None:
        """Add a row to an array of the set; an array begins with the first sample that has it."""
        if key not in self._columns:
            if values is None:
                return
            path = self._folder / f"{key}.npy"
            self._columns[key] = Column(path, dtype, values.shape, fill, len(self._facts))
        self._columns[key].append(values)

    def _check(self, sample: Sample, arrays: Mapping[str, Array | None]) -> None:
        name = sample.name
        if sample.image.ndim != 3:
            raise ValueError(f"{name}: an image of shape {sample.image.shape} is not (C, H, W)")
        if (sample.target is not None) != (self._kind == "pairs"):
            raise ValueError(f"targets go with kind='pairs', and this set is of {self._kind!r}")
        for key, values in (("truths", sample.truth), ("psf", sample.psf)):
            if self._facts and (values is not None) != (key in self._columns):
                raise ValueError(f"{name}: {key} go with all samples of a set, or with none")
        if sample.truth is not None and (
            sample.target is None or sample.truth.shape != sample.target.shape
        ):
            raise ValueError(f"{name}: truths are not of the targets' shape")
        end = len(self._labels) if self._kind == "classify" else 0
        if not -1 <= sample.label < end:
            raise ValueError(f"label {sample.label} lies outside -1..{end - 1}")
        for key, values in arrays.items():
            if values is not None:
                self._check_values(name, key, values)

    def _check_values(self, name: str, key: str, values: Array) -> None:
        if key in self._columns and values.shape != self._columns[key].row:
            row = self._columns[key].row
            raise ValueError(f"{name}: {key} are {row} a sample, not {values.shape}")
        # As it will be stored: float32 cannot hold all that float64 can.
        with np.errstate(over="ignore"):
            stored = values.astype("float32" if key == "weights" else self._dtype, copy=False)
        if not np.isfinite(stored).all() or (key == "weights" and (values < 0).any()):
            odd = "NaN, infinity" + (" or less than 0" if key == "weights" else "")
            raise UserError(f"{name}: {key} hold {odd}")
        if key in ("images", "targets"):
            check_scaled(self._dtype, values.min(), values.max(), name)

    def finish(self) -> Manifest:
        """Decide the splits, write the manifest and give the folder its name.

        Raises:
            UserError: no sample was added, or the destination was made meanwhile.
            OSError: the disk is full.
        """
        if not self._facts:
            raise UserError(f"no sample was given to pack into {self._staging.dest}")
        label = np.array([facts.label for facts in self._facts], np.int16)
        mass = np.array([facts.mass for facts in self._facts], np.float64)
        supplied = np.array([facts.split for facts in self._facts], np.uint8)
        contents = [facts.content for facts in self._facts]
        systems = units(contents, [facts.group for facts in self._facts])
        split = assign_splits(systems, label, self._seed, supplied)
        for column in self._columns.values():
            column.close()
        small: dict[str, Array] = {"labels": label, "split": split}
        if not np.isnan(mass).all():
            small["mass"] = mass
        for key, values in small.items():
            np.save(self._folder / f"{key}.npy", values)
        self._rows.close()
        (self._folder / REPORT).write_text(self._report.to_json())

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
        moments = np.stack([facts.moments for facts in self._facts])
        targets = self._columns.get("targets")
        return Manifest(
            kind=self._kind,
            labels=self._labels,
            count=len(self._facts),
            image_shape=cast(tuple[int, int, int], self._columns["images"].row),
            target_shape=cast(tuple[int, int, int], targets.row) if targets else None,
            dtype=self._dtype,
            counts=count_classes(label, split, self._labels),
            seed=self._seed,
            statistics=join_moments(moments[train if train.any() else ...]),
            source=self._source,
            files=files,
            report=file_info(self._folder / REPORT),
            fingerprint="",
            **asdict(self._instrument),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
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
