"""Whether a network takes the images of a set, and which settings make it so."""

from __future__ import annotations

from lensdist.config.schema import BaseRun, CommonRun, FinetuneRun, SuperResolutionRun
from lensdist.data.dataset import PackedSet
from lensdist.errors import UserError
from lensdist.export import read_export
from lensdist.sim.simulator import Simulator


def check_images(cfg: BaseRun, packed: PackedSet) -> None:
    """Make sure that the network takes the images of a set.

    Raises:
        UserError: it does not, or the preprocessing cannot; settings that it names make it so, or
            it says that none do.
    """
    shape = packed.manifest.image_shape
    model = cfg.model  # type: ignore[attr-defined]
    wanted = (model.in_channels, model.image_size, model.image_size)
    encoder = _encoder(cfg)
    if shape != wanted or _too_narrow(cfg, encoder, shape):
        raise UserError(
            f"{packed.path} holds images of {_times(shape)} but the model takes {_times(wanted)}; "
            f"{_remedy(cfg, encoder, shape)}"
        )
    if cfg.data.source == "stream" and not isinstance(cfg, SuperResolutionRun):
        assert cfg.data.sim is not None  # the configuration has checked
        simulated = Simulator(cfg.data.sim).image_shape
        if simulated != shape:
            raise UserError(
                f"data.sim: family {cfg.data.sim.family} makes images of {_times(simulated)} but "
                f"{packed.path} holds {_times(shape)}; use another family, or data.source=packed"
            )
    masked = packed.manifest.pixel_weights
    if cfg.preprocess.scale == "lens_fit" and masked:
        raise UserError(
            f"preprocess.scale: lens_fit cannot pass over pixels, and {packed.path} holds "
            f"{masked[0]}; use another scale"
        )


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _encoder(cfg: BaseRun) -> dict[str, int] | None:
    """Bands, pixels a side and of a patch of the pretrained encoder, where there is one."""
    if not isinstance(cfg, (FinetuneRun, SuperResolutionRun)) or cfg.encoder is None:
        return None
    try:
        model = read_export(cfg.encoder)[0].get("model")
    except UserError:  # what reads the weights will say it better: it may not be finished
        return None
    fields = ("in_channels", "image_size", "patch_size")
    if not isinstance(model, dict) or not all(isinstance(model.get(f), int) for f in fields):
        return None
    return {field: model[field] for field in fields}


def _too_narrow(cfg: BaseRun, encoder: dict[str, int] | None, shape: tuple[int, int, int]) -> bool:
    """Whether a pretrained encoder, which keeps its shape, cannot take the images at all."""
    if encoder is None:
        return False
    # Super-resolution resizes what its encoder sees.
    sizes = isinstance(cfg, FinetuneRun) and encoder["image_size"] != shape[1]
    return sizes or encoder["in_channels"] != shape[0]


def _remedy(cfg: BaseRun, encoder: dict[str, int] | None, shape: tuple[int, int, int]) -> str:
    bands, height, width = shape
    if height != width or height < 8:
        return (
            "no network here takes them: cut the images to squares of 8 pixels a side or more, and "
            "pack them again"
        )
    words = [f"model.in_channels={bands}", f"model.image_size={height}"]
    if _too_narrow(cfg, encoder, shape):
        assert encoder is not None
        size = encoder["image_size"]
        return (
            f"no setting changes that, for its encoder was pretrained on "
            f"{encoder['in_channels']}x{size}x{size}: pretrain one on such a set (task mae), or "
            "start from random weights with encoder=null"
        )
    if isinstance(cfg, CommonRun):
        return _remedy_common(cfg, shape, words)
    if isinstance(cfg, SuperResolutionRun):
        words.append(f"model.encoder.in_channels={bands}")
    elif encoder is not None:
        words.append(f"model.patch_size={encoder['patch_size']}")
    elif height % cfg.model.patch_size:  # type: ignore[attr-defined]
        own = cfg.model.patch_size  # type: ignore[attr-defined]
        patches = [p for p in range(2, height // 2 + 1) if height % p == 0]
        if not patches:
            return (
                f"no patch size divides {height}: cut or pad the images to another size, and pack "
                "them again"
            )
        words.append(f"model.patch_size={min(patches, key=lambda p: abs(p - own))}")
    return f"set {' '.join(words)}"


def _remedy_common(cfg: CommonRun, shape: tuple[int, int, int], words: list[str]) -> str:
    if cfg.members_from:
        return "no setting changes that, for members_from names networks that take no others"
    if cfg.preprocess.scale == "lens_fit":
        words.append("preprocess.scale=minmax")
    if cfg.model.grey == "repeat" and shape[0] not in (1, 3):
        words.append("model.grey=fold")
    return f"set {' '.join(words)}"
