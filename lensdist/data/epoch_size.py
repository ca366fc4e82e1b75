"""Count the images of an epoch, before a run has made or opened its data (torch-free)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from lensdist.data.config import DataConfig
from lensdist.data.manifest import MANIFEST, UNLABELLED, Manifest
from lensdist.data.splits import train_size


def images_per_epoch(data: DataConfig, run_dir: Path) -> int | None:
    """Return the images of an epoch: the train split that `data` chooses, or the stream's.

    For a set that the run has yet to simulate, this assumes that no two images are equal.

    Args:
        data: the settings of the data.
        run_dir: the folder of the run, which may hold a set of its own.

    Returns:
        None if the packed set does not exist, or lacks a class.

    Raises:
        UserError: the folder does not hold a packed set.
    """
    if data.source == "stream":
        return data.stream_epoch
    folder = data.path or run_dir / "data"
    if (folder / MANIFEST).exists():
        manifest = Manifest.load(folder)
        return _chosen(manifest.counts.get("train", {}), manifest.labels, data)
    return None if data.path is not None else _own(data)


def _chosen(counts: Mapping[str, int], labels: Sequence[str], data: DataConfig) -> int | None:
    """Count as `lensdist.data.subset.View` chooses: by class names, then by numbers."""
    classes = data.classes or labels
    if not set(classes) <= set(labels):
        return None
    if data.labels_per_class is not None:
        return (data.labels_per_class - data.held_back) * len(classes)
    here = sum(counts.values()) if data.classes is None else sum(counts.get(c, 0) for c in classes)
    return here if data.train_images is None else min(here, data.train_images - data.held_back)


def _own(data: DataConfig) -> int | None:
    """Count the train split of a set that is to be simulated."""
    assert data.sim is not None  # checked by the configuration
    n, labels = data.n_per_class, data.sim.labels
    if data.sim.family == "sr":  # pairs have no classes: the splits are drawn from all of them
        n, labels = n * len(labels), ()
    tests = data.sim.test_images(n)
    train = train_size(n - tests, draws=1 if tests else 2)
    return _chosen(dict.fromkeys(labels or (UNLABELLED,), train), labels, data)
