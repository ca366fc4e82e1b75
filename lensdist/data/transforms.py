"""Scale images from the units on disk to the network's, batched on the device.

A `Preprocess` is part of the exported model, so that its users feed raw images.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lensdist.data.config import PreprocessConfig
from lensdist.data.limits import Examined, Limits, limits_of, outside
from lensdist.data.registered import COLUMNS as FITTED
from lensdist.data.registered import Fit, Registered
from lensdist.data.smooth import Smooth
from lensdist.sim.families import FAMILIES
from lensdist.sim.fit import NUMBERS, SmoothLensFit
from lensdist.utils.errors import UserError

log = logging.getLogger(__name__)

FIT = 2
"""The version of the lens fit: another gives networks another input."""
PLACE = 2
"""The version of the fit of an image's place: 1 was to whole pixels only."""
_UNITS = ("image_mean", "image_std", "image_max")  # where the unit of an image matters
_COLUMNS = {
    "lens_fit": tuple(f"fit_{name}" for name in NUMBERS),
    **dict.fromkeys(("standard", "asinh", "none"), _UNITS),
}


class Preprocess:
    """The scaling of images (B, C, H, W), each independent of the others in its batch.

    Args:
        cfg: the settings.
        mean, std: statistics of the train split's pixels, one per band; `standard` and `asinh` need
            them.
        smooth: the basis of the smooth part that `residual` takes off; `Registered` if `cfg.shift`
            is set.
        normalise: after `minmax` or `none`, take `mean` off and divide by `std`, which are then
            those of the scaled images. With several values, one band becomes as many.
        limits: of the columns that `examine` returns, those of the training images; None: unknown.
    """

    def __init__(
        self,
        cfg: PreprocessConfig,
        mean: list[float],
        std: list[float],
        smooth: Smooth | Registered | None = None,
        normalise: bool = False,
        limits: Limits | None = None,
    ) -> None:
        self.cfg = cfg
        self.mean = mean
        self.std = std
        self.smooth = smooth
        self.normalise = normalise
        self.limits = limits
        self._constants: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self._fits: dict[torch.device, SmoothLensFit] = {}

    def __call__(self, x: Tensor, good: Tensor | None = None) -> Tensor:
        """Scale raw images, as `examine` does."""
        return self.examine(x, good).seen

    def examine(self, x: Tensor, good: Tensor | None = None) -> Examined:
        """Scale raw images, and compare them with the training images.

        Args:
            x: (B, C, H, W), in the units on disk.
            good: (B, 1 or C, H, W) bool; other pixels become 0 and do not count.

        Raises:
            UserError: `good` was given with `lens_fit`, which cannot pass over pixels.
        """
        x = x.float()
        columns: dict[str, Tensor] = {}
        if self.cfg.scale == "lens_fit":
            if good is not None:
                raise UserError("preprocess.scale: lens_fit cannot pass over bad pixels or weights")
            seen, columns = self._lens_fit(x)
        elif isinstance(self.smooth, Registered):
            fit = self.smooth.fit(x, good)
            seen, columns = self._registered(self.smooth, fit, x, good), self.smooth.columns(fit)
        else:
            seen = self._scaled(x, good)
            if self.columns:
                columns = _units(x, good)
                if self.cfg.scale == "residual":
                    columns["residual"] = _units(torch.sinh(seen), good)["image_std"]
        flagged = x.new_zeros(x.shape[:1], dtype=torch.bool)  # len(x) would fix an export's batch
        for one in outside(columns, self.limits or {}).values():
            flagged |= one
        return Examined(seen, columns, flagged)

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns that `examine` returns."""
        if self.cfg.scale == "residual":
            return FITTED if isinstance(self.smooth, Registered) else (*_UNITS, "residual")
        return _COLUMNS.get(self.cfg.scale, ())

    def learn_limits(self, columns: dict[str, Tensor]) -> None:
        """Take the limits of the columns from those of the training images (N,)."""
        self.limits = limits_of(columns)
        if isinstance(self.smooth, Registered):
            # Any flux will do, and any shift but the largest: beyond it may be a better one.
            del self.limits["fit_flux"]
            most = max(self.smooth.reach - 1, 0) + 0.5
            self.limits |= dict.fromkeys(("fit_shift_x", "fit_shift_y"), (-most, most))

    @property
    def needs(self) -> str:
        """What images must share with the training images; empty: neither unit nor place.

        Images that differ in it are flagged.
        """
        if self.cfg.scale == "residual" and self.smooth is not None:
            if isinstance(self.smooth, Registered):
                return ""
            return "unit, background and place"
        return "unit" if self.columns == _UNITS else ""

    @property
    def _version(self) -> int | None:
        """The version of what is fitted to images; None: nothing is."""
        if self.cfg.scale == "lens_fit":
            return FIT
        return PLACE if isinstance(self.smooth, Registered) else None

    def _scaled(self, x: Tensor, good: Tensor | None) -> Tensor:
        if good is None:
            return self._scale(x, x, x)
        if self.cfg.scale == "residual":  # a bad pixel must not move the image's smooth part
            x = torch.where(good, x, self._smooth.mean.to(x.device).view_as(x[0]))
        return torch.where(good, self._scale(x, *_limits(x, good)), 0.0)

    def _scale(self, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
        if self.cfg.scale == "minmax":
            low, span = _range(low, high)
            x = (x - low) / span
        if self.cfg.scale in ("minmax", "none") and not self.normalise:
            return x
        if self.cfg.scale == "residual":
            return torch.asinh((x - self._smooth.of(x)) / self._residual_unit)
        mean, std = self._on(x.device)
        if self.cfg.scale != "asinh":
            return (x - mean) / std
        return torch.asinh(x / (std * self.cfg.softening))

    def _registered(self, smooth: Registered, fit: Fit, x: Tensor, good: Tensor | None) -> Tensor:
        left = torch.asinh((fit.residual / self._residual_unit).to(x.dtype))
        if good is not None:
            known = good.expand_as(x).flatten(2).gather(2, fit.pixels.expand_as(left))
            left = torch.where(known, left, 0.0)
        return smooth.framed(left).to(x.dtype)

    def _lens_fit(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the residual in standard deviations and the lens, and the columns.

        Both images are at half the resolution, (B, 2, H / 2, W / 2).

        The residual is informative only where there is light, which the second channel, a
        logarithm, shows (accuracy on 300 images: .966 without it, .98 with it).
        """
        if x.device not in self._fits:
            self._fits[x.device] = SmoothLensFit(FAMILIES["common"], x.device)
        lens = self._fits[x.device](x[:, 0])
        chi = lens.chi.clamp(-12, 12) * (2 / 3)
        seen = torch.stack([chi, (lens.light.clamp_min(0) + 0.1).log() / 2], 1)
        return seen, {f"fit_{name}": value for name, value in lens.numbers.items()}

    @property
    def slow(self) -> bool:
        """Whether the results should be computed once and kept."""
        return self.cfg.scale == "lens_fit"

    def alike(self, x: Tensor, raw: Tensor, good: Tensor | None = None) -> Tensor:
        """Scale images `x`, of any size, by the range of the raw images that belong to them.

        Only for `LIGHT_KEEPING` scales, which shift and stretch all pixels of an image alike.
        """
        if self.cfg.scale == "minmax":
            low, span = _range(*_limits(raw, good))
            return (x - low) / span
        assert self.cfg.scale in ("standard", "none"), self.cfg.scale
        return self._scale(x, x, x)

    def unit(self, raw: Tensor, good: Tensor | None = None) -> Tensor:
        """Return how many units on disk make one unit of `alike`, for each image: (B or 1, …)."""
        if self.cfg.scale == "minmax":
            return _range(*_limits(raw, good))[1]
        assert self.cfg.scale in ("standard", "none"), self.cfg.scale
        std = self._on(raw.device)[1][None]
        return std if self.cfg.scale == "standard" else torch.ones_like(std)

    def inverse(self, y: Tensor, raw: Tensor, good: Tensor | None = None) -> Tensor:
        """Return network output `y` in the units of its raw images, scaled with the same `good`."""
        if self.cfg.scale == "minmax":
            low, span = _range(*_limits(raw, good))
            return low + y * span
        if self.cfg.scale == "none":
            return y
        assert self.cfg.scale != "lens_fit", "lens_fit has no inverse"
        if isinstance(self.smooth, Registered):
            fit = self.smooth.fit(raw, good)
            left = torch.sinh(self.smooth.inner(y)).double() * self._residual_unit
            return self.smooth.with_residual(fit, left).to(raw.dtype)
        if self.cfg.scale == "residual":
            return self._smooth.of(raw) + torch.sinh(y) * self._residual_unit
        mean, std = self._on(y.device)
        if self.cfg.scale == "standard":
            return y * std + mean
        return torch.sinh(y) * std * self.cfg.softening

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device not in self._constants:
            mean, std = (
                torch.tensor(v, dtype=torch.float32, device=device)[:, None, None]
                for v in (self.mean, self.std)
            )
            self._constants[device] = (mean, std.clamp_min(1e-30))
        return self._constants[device]

    @property
    def _smooth(self) -> Smooth:
        assert isinstance(self.smooth, Smooth), "scale: residual without a basis"
        return self.smooth

    @property
    def _residual_unit(self) -> float:
        assert self.smooth is not None, "scale: residual without a basis"
        return max(self.smooth.scale * self.cfg.softening, 1e-30)

    def state(self) -> dict[str, Any]:
        """Return the JSON part of the state for `from_state`; the basis is in `tensors()`."""
        state = {**self.cfg.model_dump(mode="json"), "mean": self.mean, "std": self.std}
        if self.normalise:
            state["normalise"] = True
        if self._version is not None:
            state["fit"] = self._version
        if self.limits is not None:
            state["limits"] = {name: list(ends) for name, ends in self.limits.items()}
        if self.needs:
            state["needs"] = f"the {self.needs} of the training images; others are flagged"
        if self.smooth is not None:
            state["residual_rms"] = self.smooth.scale
        if isinstance(self.smooth, Registered):
            state |= {"image_shape": list(self.smooth.shape), "smooth_made": self.smooth.made}
        return state

    def tensors(self) -> dict[str, Tensor]:
        """Return the part of the state for `from_state` that is too large for JSON."""
        if self.smooth is None:
            return {}
        if isinstance(self.smooth, Registered):
            return {"smooth_rows": self.smooth.rows, "smooth_typical": self.smooth.typical}
        return {"smooth_mean": self.smooth.mean, "smooth_rows": self.smooth.rows}

    @classmethod
    def from_state(
        cls, state: dict[str, Any], tensors: Mapping[str, Tensor] | None = None
    ) -> Preprocess:
        """Rebuild from `state()` and `tensors()`.

        Raises:
            ValueError, LookupError, TypeError: they do not describe a `Preprocess`.
        """
        cfg = PreprocessConfig(**{k: state[k] for k in PreprocessConfig.model_fields if k in state})
        smooth = _smooth_of(cfg, state, tensors or {}) if cfg.scale == "residual" else None
        mean, std = ([float(value) for value in state[name]] for name in ("mean", "std"))
        if len(mean) != len(std):
            raise ValueError(f"{len(mean)} means for {len(std)} standard deviations")
        limits = state.get("limits")
        if limits is not None:
            limits = {str(name): (float(low), float(high)) for name, (low, high) in limits.items()}
        made = cls(cfg, mean, std, smooth, bool(state.get("normalise", False)), limits)
        if made._version != state.get("fit"):
            log.warning(
                "the model was trained on the lens fit of an earlier version, and predicts with "
                "this one: its probabilities may differ; train it again"
            )
        return made


def _smooth_of(
    cfg: PreprocessConfig, state: dict[str, Any], own: Mapping[str, Tensor]
) -> Smooth | Registered:
    scale = float(state["residual_rms"])
    if cfg.shift is None:
        return Smooth(own["smooth_mean"], own["smooth_rows"], scale)
    bands, height, width = (int(n) for n in state["image_shape"])
    rows, typical, made = own["smooth_rows"], own["smooth_typical"], str(state["smooth_made"])
    return Registered(rows, typical, (bands, height, width), cfg.shift, scale, made)


def _units(x: Tensor, good: Tensor | None) -> dict[str, Tensor]:
    """Return mean, standard deviation and maximum of the good pixels of images, (B,) each."""
    known = torch.ones_like(x) if good is None else good.expand_as(x).to(x.dtype)
    axes, n = (1, 2, 3), known.sum((1, 2, 3)).clamp_min(1)
    values = torch.where(known > 0, x, 0.0)
    mean = values.sum(axes) / n
    off = (values - mean[:, None, None, None]).square() * known
    most = torch.where(known > 0, x, -math.inf).amax(axes)
    return dict(zip(_UNITS, (mean, (off.sum(axes) / n).sqrt(), most), strict=True))


def _limits(raw: Tensor, good: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the images for minima and for maxima; bad pixels are ±infinity and never chosen."""
    if good is None:
        return raw, raw
    return torch.where(good, raw, math.inf), torch.where(good, raw, -math.inf)


def _range(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Return minimum and range of each image, (B, 1, 1, 1)."""
    low = low.amin((1, 2, 3), keepdim=True)
    span = high.amax((1, 2, 3), keepdim=True) - low
    return low, torch.where(span > 0, span, 1)  # a blank image becomes zeros
