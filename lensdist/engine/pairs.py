"""Whether pairs suit a run of super-resolution, told before it begins."""

from __future__ import annotations

import logging

import numpy as np

from lensdist.config.schema import SuperResolutionRun
from lensdist.data.packed import PackedSet
from lensdist.errors import UserError
from lensdist.resample import block_means

log = logging.getLogger(__name__)

_LOOKED_AT = 16  # training pairs
_UNLIKE = 0.3  # of HR's own contrast; LR that is a noisy exposure of its own is below it


def check_pairs(cfg: SuperResolutionRun, packed: PackedSet) -> None:
    """Check shapes, and that LR is what the network takes it for; warn of an odd `data_range`.

    Raises:
        UserError: these are no pairs, or of another factor, or LR is not HR's block means.
    """
    packed.require_pairs(cfg.model.factor, truth=cfg.learn == "truth")
    if cfg.data.source == "stream":
        assert cfg.data.sim is not None  # the configuration has checked
        from lensdist.sim.simulator import Simulator

        simulated = Simulator(cfg.data.sim)
        about = packed.manifest
        if (simulated.image_shape, simulated.target_shape) != (
            about.image_shape,
            about.target_shape,
        ):
            raise UserError(
                f"data.sim: family {cfg.data.sim.family} does not simulate pairs like those of "
                f"{packed.path}; use family sr, and a set of 75 and 150 pixels to validate on"
            )
    _check_means(cfg, packed)
    low, high = min(packed.manifest.statistics.min), max(packed.manifest.statistics.max)
    if high - low > 2 * cfg.data_range:
        log.warning(
            f"{packed.path} runs from {low:g} to {high:g}; PSNR and SSIM are of "
            f"data_range {cfg.data_range:g}"
        )


def _check_means(cfg: SuperResolutionRun, packed: PackedSet) -> None:
    rows = packed.indices("train")[:_LOOKED_AT]
    if cfg.model.decoder != "residual" or not cfg.model.exact_means or not len(rows):
        return
    pairs = packed.gather(rows)
    lr, means = pairs["image"].double(), block_means(pairs["target"].double(), cfg.model.factor)
    if "badpix" in pairs:
        lr, means = (x[~pairs["badpix"]] for x in (lr, means))
    off, contrast = float((lr - means).square().mean().sqrt()), float(means.std())
    if off > _UNLIKE * contrast:
        slope = float(np.polyfit(means.flatten().numpy(), lr.flatten().numpy(), 1)[0])
        raise UserError(
            f"{packed.path}: LR is not the mean of HR's {cfg.model.factor}x{cfg.model.factor} "
            f"blocks (it is {slope:.3g} times that, at best); rescale one of them, or set "
            "model.exact_means=false"
        )
