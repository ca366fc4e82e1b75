"""Read and check `manifest.json`, the description of a packed set (torch-free)."""

from __future__ import annotations

import hashlib
import json
import stat
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, JsonValue, ValidationError

from lensdist.sim.config import SimConfig
from lensdist.utils.errors import UserError
from lensdist.utils.files import sha256
from lensdist.utils.settings import Strict

FORMAT = 1
MANIFEST = "manifest.json"
FILES = "files.jsonl"
"""A JSON object per sample: `name` relative to the source, `sha256` of the file (of a pair, of both
files' hashes), `content` (see `splits.content_digest`), `shape` and, where images were grouped,
`group`, the system."""
REPORT = "report.json"
UNLABELLED = "unlabelled"
_MAX_BYTES = 16 << 20  # a manifest is a few kB

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
    "psf.npy",
    "split.npy",
    "files.jsonl",
]
Positive = Annotated[float, Field(gt=0)]
Length = Annotated[int, Field(gt=0)]


class FileInfo(Strict):
    """Size and hash of a whole file, as `sha256sum` gives it."""

    bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class Statistics(Strict):
    """Statistics of the train split's good pixels, one number per channel, in the images' units.

    In a set without a train split, made for testing only, they are of all pixels.
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
    image_shape: tuple[Length, Length, Length]
    """(C, H, W)."""
    target_shape: tuple[Length, Length, Length] | None = None
    dtype: DType
    counts: dict[Literal["train", "val", "test"], dict[str, int]]
    """The number of samples, by split and class name. Without classes the name is `unlabelled`."""
    seed: int
    """Seed of the splits."""
    statistics: Statistics
    pixel_scale_arcsec: Positive | None = None
    """Pixel scale of `images.npy`, arcsec; None where unknown."""
    psf_fwhm_arcsec: Positive | None = None
    zero_point_mag: float | None = None
    """The magnitude of one image unit."""
    source: dict[str, JsonValue]
    """The origin of the samples: a folder and its layout, or a simulation and its priors."""
    files: dict[FileName, FileInfo]
    fingerprint: str
    """The name of the data: a hash of all fields above but `source`."""
    report: FileInfo | None = None
    """`report.json`; None in sets of versions without seals."""
    seal: str = ""
    """A hash of all fields above; empty in sets of versions without seals."""

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read and check `folder/manifest.json`.

        Raises:
            UserError: it is missing, not a manifest, of another version, or was changed by hand.
        """
        path = folder / MANIFEST
        try:
            found = path.stat()
            # Opening a named pipe would block.
            if not stat.S_ISREG(found.st_mode) or found.st_size > _MAX_BYTES:
                raise UserError(f"{path} is too large to be a manifest, or not a regular file")
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
        try:
            whole = manifest.fingerprint == manifest.hash()
            whole = whole and manifest.seal in ("", manifest.hash(sealed=True))
        except ValueError:  # a number of more digits than Python writes
            whole = False
        if not whole:
            raise UserError(
                f"{path} was changed or damaged after packing: its fingerprint or seal does not "
                "match; copy the set again from where it is whole, or pack it again"
            )
        bands = manifest.image_shape[0]
        if any(len(v) != bands for v in manifest.statistics.model_dump().values()):
            raise UserError(f"{path} is not a valid manifest: statistics: not one number per band")
        return manifest.model_copy(update={"source": _in_todays_words(manifest.source)})

    @property
    def pixel_weights(self) -> list[str]:
        """The files of pixel masks and weights; empty where all pixels count equally."""
        return [name for name in ("badpix.npy", "weights.npy") if name in self.files]

    def hash(self, *, sealed: bool = False) -> str:
        """Compute `fingerprint`, or `seal`: SHA-256 of the canonical JSON of other fields.

        The fingerprint leaves out `source` and the report, because the same data packed from
        another folder is the same data. The seal leaves out only itself.
        """
        left_out = {"seal"} if sealed else {"seal", "fingerprint", "source", "report"}
        facts = self.model_dump(mode="json", exclude=left_out)
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def file_info(path: Path) -> FileInfo:
    """Return size and SHA-256 of a file, which is read in pieces."""
    return FileInfo(bytes=path.stat().st_size, sha256=sha256(path))


def _in_todays_words(source: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """Return what a set was made from, with the simulator's settings as they are called now."""
    own = source.get("simulated")
    if not isinstance(own, dict):
        return source
    try:
        return source | {"simulated": SimConfig.recorded(own).model_dump(mode="json")}
    except ValidationError:  # another version wrote it; the comparison with a run reports this
        return source
