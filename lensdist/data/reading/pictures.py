"""Read pictures, .png, .jpg and .tif, through Pillow (torch-free)."""

from __future__ import annotations

import io

import numpy as np

from lensdist.data.reading.raw import BadFile, Raw, check_unpacked_size
from lensdist.utils.extras import needed

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
"""The ends of their names, in lower case."""
_FORMATS = ("PNG", "JPEG", "TIFF")  # not what else Pillow would recognise in the bytes
_NUMBERS = ("1", "L", "RGB", "I", "F", "I;16", "I;16B", "I;16L", "I;16N")


def parse_picture(data: bytes) -> Raw:
    """Read a picture: grey values as (H, W), colours as (3, H, W), in the order red, green, blue.

    Pixels that are wholly transparent are bad. Values of whole numbers count as stretched for a
    screen; those of a TIFF in float do not.

    Raises:
        BadFile: it is no picture of these kinds, has several pages, or is too large.
        UserError: Pillow is not installed.
    """
    module = needed("PIL.Image", "reading .png, .jpg and .tif", "pillow")
    with module.open(io.BytesIO(data), formats=_FORMATS) as picture:
        check_unpacked_size(4 * picture.width * picture.height * len(picture.getbands()))
        if (pages := getattr(picture, "n_frames", 1)) > 1:
            raise BadFile(f"it is a picture of {pages} pages; give a file for each")
        stretched = picture.mode != "F"
        clear = None
        if picture.mode in ("LA", "PA", "RGBA") or "transparency" in picture.info:
            clear = np.asarray(picture.convert("RGBA"))[..., 3] == 0
        if picture.mode not in _NUMBERS:  # palettes, CMYK, with transparency
            picture = picture.convert("L" if picture.mode == "LA" else "RGB")
        pixels = np.asarray(picture)
    image = np.moveaxis(pixels, -1, 0) if pixels.ndim == 3 else pixels
    hidden = clear if clear is not None and clear.any() else None
    return Raw(image, badpix=hidden, stretched=stretched)
