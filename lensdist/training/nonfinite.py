"""Find the sample that led to NaN or infinity; called only after one has appeared."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from lensdist.data.masks import good_pixels
from lensdist.data.sampler import Images, Source
from lensdist.data.transforms import Preprocess
from lensdist.tasks.types import Batch
from lensdist.utils.errors import RunError

_LOOKED_AT = ("target", "truth", "weight", "seen")


def find_nonfinite(
    source: Source | Images, batches: Iterable[Batch], preprocess: Preprocess
) -> None:
    """Search for the first sample that is not finite.

    Args:
        source: the origin of the batches.
        batches: as sources and views return them.
        preprocess: from disk to network.

    Raises:
        RunError: such a sample was found.
    """

    def refuse(batch: Batch, values: Tensor, why: str) -> None:
        odd = ~values.isfinite().flatten(1).all(1).cpu()
        if odd.any():
            raise RunError(f"{source.name_of(int(batch['sample'].cpu()[odd][0]))}: {why}")

    mend = "holds NaN or infinity; mend or remove it and pack the set again"
    for batch in batches:
        for name in _LOOKED_AT:
            if name in batch:
                refuse(batch, batch[name], f"its {name} {mend}")
        if "image" in batch:
            image, good = batch["image"], good_pixels(batch)
            counted = image if good is None else torch.where(good, image, 0)
            refuse(batch, counted, f"its image {mend}")
            scale = preprocess.cfg.scale
            why = f"preprocess.scale: {scale} makes NaN or infinity of it; use another scale"
            refuse(batch, preprocess(image, good), why)
