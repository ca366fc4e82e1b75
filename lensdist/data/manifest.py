"""`manifest.json` of a packed set: what is in it, in which units, and the hashes that prove it.

Torch-free: the launcher and `lensdist pack` read manifests too.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, JsonValue, ValidationError

from lensdist.config.base import Strict
from lensdist.errors import UserError
from lensdist.files import sha256

FORMAT = 1
MANIFEST = "manifest.json"
FILES = "files.jsonl"
"""A row a sample: `name` relative to the source, `sha256` of the file (of a pair, of both hashes),
`content` (see `splits.content_digest`) and `shape`."""
REPORT = "report.json"
UNLABELLED = "unlabelled"
_MAX_BYTES = 16 << 20  # a manifest is a few kB; one of this size is not a manifest

Kind = Literal["classify", "pairs", "images"]
DType = Literal["float32", "float16"]
FileName = Literal[
    "images.npy",
    "labels.npy",
    "mass.npy",
    "targets.npy",
    "truths.npy",
    "badpix.npy",
    "weights.npy",
    "split.npy",
    "files.jsonl",
]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class FileInfo(Strict):
    """One file of the set, whole (header included, so `sha256sum` gives the same)."""

    bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class Statistics(Strict):
    """Over the train split's good pixels, one number a channel, in the images' own units.

    (Over all pixels where nothing is in the train split, as in a set made for testing only.)
    """

    min: list[float]
    max: list[float]
    mean: list[float]
    std: list[float]


class Manifest(Strict):
    """The description of a packed set."""

    format: int = FORMAT
    kind: Kind
    """classify: labelled images; pairs: images are LR, targets HR; images: no labels."""
    labels: list[str]
    """Class names; `labels.npy` holds indices into this list, -1 where unlabelled."""
    count: int = Field(gt=0)
    image_shape: tuple[int, int, int]
    """(C, H, W)."""
    target_shape: tuple[int, int, int] | None = None
    dtype: DType
    counts: dict[Literal["train", "val", "test"], dict[str, int]]
    """Samples per split and class name (`unlabelled` where there are no classes)."""
    seed: int
    """Of the splits."""
    statistics: Statistics
    pixel_scale_arcsec: Positive | None = None
    """Arcseconds a pixel, of `images.npy`; None where unknown."""
    psf_fwhm_arcsec: Positive | None = None
    zero_point_mag: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """The magnitude of one image unit."""
    source: dict[str, JsonValue]
    """Where the samples came from: a folder and its layout, or a simulation and its priors."""
    files: dict[FileName, FileInfo]
    fingerprint: str
    """Names the data: a hash over everything above but `source`."""

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read and check `folder/manifest.json`.

        Raises:
            UserError: it is missing, not ours, of another version, or was changed by hand.
        """
        path = folder / MANIFEST
        try:
            if path.stat().st_size > _MAX_BYTES:
                raise UserError(f"{path} is too large to be a manifest")
            text = path.read_bytes()
        except OSError as error:
            raise UserError(
                f"{folder} is not a packed set: cannot read {MANIFEST} ({error.strerror}). "
                "Make one with `lensdist pack SRC DEST`."
            ) from error
        try:
            manifest = cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise UserError(f"{path} is not a valid manifest: {where}: {first['msg']}") from error
        if manifest.format != FORMAT:
            raise UserError(f"{path} is of format {manifest.format}; this version reads {FORMAT}")
        if manifest.fingerprint != manifest.hash():
            raise UserError(f"{path} was changed after packing: its fingerprint does not match")
        return manifest

    def hash(self) -> str:
        """What `fingerprint` should be: SHA-256 of the canonical JSON of all other fields.

        `source` is left out: the same data packed from a folder of another name is the same data.
        """
        facts = self.model_dump(mode="json", exclude={"fingerprint", "source"})
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def file_info(path: Path) -> FileInfo:
    """Size and SHA-256 of a file, read in pieces."""
    return FileInfo(bytes=path.stat().st_size, sha256=sha256(path))
