"""Writing of predicted images as .npy or FITS (torch-free)."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lensdist.inference.frames import Frame
from lensdist.inference.outputs import is_fits, sigma_beside
from lensdist.inference.wcs import Header, rescaled
from lensdist.utils.files import write_atomic

Image = npt.NDArray[np.float32]


def write_image(
    path: Path,
    image: Image,
    sigma: Image | None,
    frame: Frame,
    factor: int,
    history: Sequence[str],
) -> None:
    """Write an image atomically, as FITS if `path` has a FITS ending, else as .npy.

    Args:
        path: the image's path; `sigma` goes beside an .npy file, or into a FITS file as `SIGMA`.
        image: (C, H, W); written in the shape of the input, such as (H, W).
        sigma: (C, H, W), the standard deviation of each pixel.
        frame: the shape and headers of the input.
        factor: the pixels a side of the output for one pixel of the input.
        history: sentences for FITS's HISTORY.

    Raises:
        OSError: it cannot be written.
    """
    if is_fits(path):
        write_atomic(path, _fits(image, sigma, frame, factor, history))
        return
    shape = image.shape if frame.leading else image.shape[1:]
    for at, pixels in ((sigma_beside(path), sigma), (path, image)):
        if pixels is not None:
            stream = io.BytesIO()
            np.save(stream, pixels.reshape(shape), allow_pickle=False)
            write_atomic(at, stream.getvalue())


def _fits(
    image: Image, sigma: Image | None, frame: Frame, factor: int, history: Sequence[str]
) -> bytes:
    from astropy.io import fits

    stream = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):  # astropy warns about every unusual card
        header = fits.Header() if frame.science is None else rescaled(frame.science, factor)
        _sign(header, history)
        shape = (*frame.leading, *image.shape[1:])
        if frame.primary is None:
            hdus = [fits.PrimaryHDU(image.reshape(shape), header)]
        else:
            primary = rescaled(frame.primary, factor)
            primary.remove("NEXTEND", ignore_missing=True)
            _sign(primary, ())
            hdus = [fits.PrimaryHDU(header=primary), fits.ImageHDU(image.reshape(shape), header)]
        if sigma is not None:
            hdus.append(fits.ImageHDU(sigma.reshape(shape), header, name="SIGMA"))
        fits.HDUList(hdus).writeto(stream, output_verify="silentfix+ignore")
    return stream.getvalue()


def _sign(header: Header, history: Sequence[str]) -> None:
    now: Any = datetime.now(UTC).replace(tzinfo=None)
    header["DATE"] = (now.isoformat(timespec="seconds"), "UTC, when this file was written")
    for sentence in history:
        # FITS allows printable ASCII only.
        header.add_history("".join(c if " " <= c <= "~" else "?" for c in sentence))
