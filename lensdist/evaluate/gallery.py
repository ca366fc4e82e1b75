"""Single images of a scored run: the surest mistakes, the flagged ones, and all as features.

Outputs come from `eval/<split>.safetensors`, pixels from the packed set, and from the exported
network what is unlike the training images, where it looks, and the features.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lensdist.data.dataset import Batch, PackedSet
from lensdist.data.masks import good_pixels
from lensdist.export.artifact import read_export
from lensdist.export.model import LoadedModel
from lensdist.metrics.cards import Card, Gallery, Singles, picture, scatter
from lensdist.metrics.images import read_images
from lensdist.utils.errors import UserError
from lensdist.utils.sealed import read_json, unsealed

log = logging.getLogger(__name__)

_CARDS = 8  # of a gallery
_LOOKED_AT, _FEW = 256, 64  # images whose features are computed; few where that takes minutes
_LARGE = 10_000_000  # parameters of a network that takes a CPU a second for a few images

Rows = npt.NDArray[np.int64]


def single_images(run: Path, split: str = "test") -> Singles:
    """Return what a page shows of a run's single images; what cannot be shown is said.

    The network is applied to at most 256 of the images, at equal distances, or 64 if it is large.
    """
    try:
        found = read_images(run, split)
        if found is None:
            return Singles()
        data = unsealed(read_json(run / "eval" / f"{split}.json"))["data"]
        packed = PackedSet(Path(data.get("path", "")))
        if packed.manifest.fingerprint != found[0]:
            return Singles(missing=f"{packed.path} is not the set that was scored")
        log.info("looking at single images of %s; --no-images leaves them out", run)
        model = LoadedModel(
            *read_export(run), "cuda" if torch.cuda.is_available() else "cpu", thorough=True
        )
        return _Look(model, packed, found[1]).all(split)
    except (UserError, OSError, ValueError, LookupError) as error:
        return Singles(missing=str(error))


class _Look:
    """A model, the set that it was scored on, and its outputs there."""

    def __init__(self, model: LoadedModel, packed: PackedSet, outputs: Batch) -> None:
        self._model, self._packed = model, packed
        self._rows: Rows = outputs["sample"].numpy()
        self._outputs = {name: value for name, value in outputs.items() if name != "sample"}

    def all(self, split: str) -> Singles:
        worst = self._model.does.mistakes(self._outputs, _CARDS)
        galleries = []
        if worst:
            text = f"Of {len(self._rows):,} {split} images, those answered worst, the worst first."
            rows = self._rows[[place for place, _ in worst]]
            cards = self._cards(rows, [said for _, said in worst])
            galleries.append(Gallery("Surest mistakes", text, cards))
        size = sum(p.numel() for p in self._model.network.parameters())
        slow = self._model.preprocess.slow or size > _LARGE
        most = min(_FEW if slow else _LOOKED_AT, len(self._rows))
        places = np.unique(np.linspace(0, len(self._rows) - 1, most).astype(np.int64))
        images, good = self._images(self._rows[places])
        answers = self._model.predict(images, good=good)
        galleries += self._flagged(self._rows[places], answers, split)
        return Singles(galleries, self._plot(places, images, good))

    def _flagged(self, rows: Rows, answers: Mapping[str, Any], split: str) -> list[Gallery]:
        """Return the images unlike the training images, if the export can tell."""
        if "flag" not in answers:
            return []
        (odd,) = answers["flag"].nonzero()
        unlike = answers.get("unlike", answers["flag"].astype(float))
        odd = odd[np.argsort(-unlike[odd], kind="stable")]
        text = (
            f"{len(odd):,} of {len(rows):,} {split} images are unlike the training images; of "
            "images like these, 1 in 100 is."
        )
        shown = odd[:_CARDS]
        cards = self._cards(rows[shown], [{"unlike": f"{unlike[i]:.2f}"} for i in shown])
        return [Gallery("Flagged images", text, cards)]

    def _plot(self, places: Rows, images: Any, good: Any) -> dict[str, Any] | None:
        if len(places) < 3:
            return None
        try:
            features = self._model.embed(images, good=good)
        except UserError:  # a task of the user's without features
            return None
        numbers = np.asarray(self._packed.labels)[self._rows[places]]
        names = [*self._packed.manifest.labels, "unlabelled"]  # whose number is -1
        return scatter(
            features, [names[n] for n in numbers], [f"sample {row}" for row in self._rows[places]]
        )

    def _cards(self, rows: Rows, said: Sequence[Mapping[str, str]]) -> list[Card]:
        if not len(rows):
            return []
        images, good = self._images(rows)
        try:
            maps: Any = self._model.attention(images, good=good)
        except UserError:  # the network is neither a transformer of ours nor convolutional
            maps = [None] * len(rows)
        shown = images if good is None else np.where(good, images, np.nan)
        return [
            Card(
                self._packed.name_of(int(row)),
                what,
                picture(image),
                "" if looks is None else picture(image, looks),
            )
            for row, what, image, looks in zip(rows, said, shown, maps, strict=True)
        ]

    def _images(self, rows: Rows) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_] | None]:
        """Return images (N, C, H, W), and which of their pixels are good; None: all are."""
        batch = self._packed.gather(rows)
        good = good_pixels(batch)
        images = batch["image"].float()
        return images.numpy(), None if good is None else good.expand_as(images).numpy()
