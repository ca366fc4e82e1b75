"""Tell by its name what an image is for: the science image, a noise map, a mask, a PSF.

The names are those of FITS extensions (`VIS_RMS`, `WHT`) and of files that lie side by side
(`data.fits`, `noise_map.fits`; `a_sci.fits`, `a_psf.fits`). They are cut into words (torch-free).
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

Role = Literal["image", "weight", "variance", "rms", "mask", "psf", "other"]

_ROLES: dict[str, Role] = {
    **dict.fromkeys(("sci", "science", "flux", "bgsub", "data", "image", "img", "drz"), "image"),
    **dict.fromkeys(("wht", "weight", "weights", "ivar", "invvar"), "weight"),
    **dict.fromkeys(("var", "variance"), "variance"),
    **dict.fromkeys(("rms", "noise", "sigma", "err", "error", "noisemap"), "rms"),
    **dict.fromkeys(("mask", "dq", "badpix", "bpm", "flags"), "mask"),
    "psf": "psf",
    **dict.fromkeys(("con", "ctx", "exp", "chi"), "other"),
}
_FILLING = {"map", "kernel", "total"}
# What pipelines write about parts of an error or of a field; a part does not replace the whole.
_PARTS = {"poisson", "rnoise", "flat", "positions", "gui"}
_MASKED = {"extra", "galaxies"}  # PyAutoLens's mask of galaxies near the lens
_BANDS = re.compile(
    r"[ugrizyjhk]|vis|f\d{3,4}[wmn]|[iz]_?e|(nir|hsc|des|decam|megacam|wfc3|acs)_\w+", re.IGNORECASE
)


class Named(NamedTuple):
    """A name cut into what it belongs to and its role: `VIS_RMS` is ("vis", "rms").

    Attributes:
        stem: in lower case; the band of an HDU, or the part of its name that sibling files share.
        role: None if the name does not say.
    """

    stem: str
    role: Role | None


def named(name: str) -> Named:
    """Return what an image belongs to and what it is, by the first or last word of its name."""
    words = [word for word in re.split(r"[_\-. ]+", name.lower()) if word]
    at = next((i for i in (-1, 0) if words and words[i] in _ROLES), None)
    if at is None:
        found = next((i for i, word in enumerate(words) if word in _FILLING and i), None)
        at = None if found is None or words[found - 1] not in _ROLES else found - 1
    if at is None:
        return Named("_".join(words), None)
    role = _ROLES[words[at]]
    rest = [word for i, word in enumerate(words) if i != at % len(words) and word not in _FILLING]
    if role == "mask":
        rest = [word for word in rest if word not in _MASKED]
    if role != "image" and _PARTS & {*rest}:
        return Named("_".join(word for word in rest if word not in _PARTS), "other")
    return Named("_".join(rest), role)


def is_band(word: str) -> bool:
    """Return whether a word is the name of a photometric band, such as `g`, `VIS` or `F814W`."""
    return _BANDS.fullmatch(word) is not None
