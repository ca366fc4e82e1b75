"""Check that a network takes the images of a set."""

from __future__ import annotations

from lensdist.config.schema import BaseRun
from lensdist.data.dataset import PackedSet
from lensdist.export.artifact import read_export
from lensdist.runs.fit import remedy_for
from lensdist.sim.simulator import Simulator
from lensdist.utils.errors import UserError


def check_images(cfg: BaseRun, packed: PackedSet) -> None:
    """Check that the network takes the images of a set.

    Raises:
        UserError: it does not, or the preprocessing cannot; the message names settings that
            help, if there are any.
    """
    shape, remedy = packed.manifest.image_shape, remedy_for(cfg, packed.manifest, read_export)
    masked = packed.manifest.pixel_weights
    if remedy is not None and cfg.preprocess.scale == "lens_fit" and shape == cfg.image_shape:
        raise UserError(
            f"preprocess.scale: lens_fit cannot skip pixels, and {packed.path} holds {masked[0]}; "
            f"{remedy}"
        )
    if remedy is not None:
        raise UserError(
            f"{packed.path} holds images of {_times(shape)} but the model takes "
            f"{_times(cfg.image_shape)}; {remedy}"
        )
    if cfg.data.source == "stream":
        assert cfg.data.sim is not None  # checked by the configuration
        simulated = Simulator(cfg.data.sim).image_shape
        if simulated != shape:
            raise UserError(
                f"data.sim: family {cfg.data.sim.family} makes images of {_times(simulated)} but "
                f"{packed.path} holds {_times(shape)}; use another family, or data.source=packed"
            )


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
