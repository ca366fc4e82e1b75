"""How many images an epoch of a run has (torch-free)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lensdist.config.schema import BaseRun
from lensdist.data.config import DataConfig
from lensdist.data.manifest import MANIFEST, UNLABELLED, Manifest


def samples_of(config: BaseRun) -> int | None:
    """Images of an epoch: the train split as `data` narrows it, or the stream's.

    Of a set that the run has yet to simulate for itself, what the split will be if no two images
    are alike.

    Returns:
        None where the packed set is not there, or lacks a class.

    Raises:
        UserError: what is there is no packed set.
    """
    data = config.data
    if data.source == "stream":
        return data.stream_epoch
    folder = data.path or config.run.dir / "data"
    if (folder / MANIFEST).exists():
        manifest = Manifest.load(folder)
        return _narrowed(manifest.counts.get("train", {}), manifest.labels, data)
    return None if data.path is not None else _own(data)


def _narrowed(counts: Mapping[str, int], labels: Sequence[str], data: DataConfig) -> int | None:
    """As `lensdist.data.subset.View` does it: by class names, then by numbers."""
    classes = data.classes or labels
    if not set(classes) <= set(labels):
        return None
    if data.labels_per_class is not None:
        return data.labels_per_class * len(classes)
    here = sum(counts.values()) if data.classes is None else sum(counts.get(c, 0) for c in classes)
    return here if data.train_images is None else min(here, data.train_images)


def _own(data: DataConfig) -> int | None:
    """Of a set that is to be simulated: `lensdist.data.packing.simulated` and `lensdist.data.splits`."""
    assert data.sim is not None  # the configuration has checked
    n, labels = data.n_per_class, data.sim.labels
    if data.sim.family == "sr":  # pairs have no classes: tenths are of all of them
        n, labels = n * len(labels), ()
    if data.sim.family == "common":  # whose test split is a fifth of its own
        n -= n // 5
        train = n - (n + 5) // 10
    else:
        train = n - 2 * ((n + 5) // 10)
    return _narrowed(dict.fromkeys(labels or (UNLABELLED,), train), labels, data)
