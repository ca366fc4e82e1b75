"""Assign samples to train, val and test by their content and the seed, once (torch-free).

A split that comes with the data is kept. Each of val and test that does not come is a tenth of the
rest, class by class, in the order of SHA-256(seed, content). So neither file names nor the order of
files matter, and identical images are always in the same split.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

from lensdist.data.manifest import UNLABELLED

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

SPLITS = ("train", "val", "test")
TRAIN, VAL, TEST = range(3)
_Counts = dict[Literal["train", "val", "test"], dict[str, int]]
UNDECIDED = 255  # a code of `supplied`: no split came with this sample


def content_digest(image: npt.NDArray[Any], target: npt.NDArray[Any] | None = None) -> bytes:
    """Return the SHA-256 of shape and float32 pixels of an image and its target.

    The packed dtype is left out, so float16 and float32 sets have the same splits.
    """
    import numpy as np

    digest = hashlib.sha256()
    for array in (image,) if target is None else (image, target):
        digest.update(repr(array.shape).encode())
        digest.update(np.ascontiguousarray(array, dtype="<f4").data)
    return digest.digest()


def _tenth(n: int, draws: int) -> int:
    """Return a tenth of n, rounded half up, but at least 1 where that leaves a train image."""
    return max((n + 5) // 10, 1 if n > draws else 0)


def train_size(n: int, draws: int) -> int:
    """Return how many of n images of a class are in train once `draws` splits are drawn."""
    return n - draws * _tenth(n, draws)


def assign_splits(
    contents: Sequence[bytes],
    labels: npt.NDArray[np.int16],
    seed: int,
    supplied: npt.NDArray[np.uint8],
) -> npt.NDArray[np.uint8]:
    """Complete the splits that came with the data.

    Args:
        contents: N digests from `content_digest`.
        labels: (N,) classes; -1 (unlabelled) counts as one class.
        seed: any integer; another seed gives other splits.
        supplied: (N,) TRAIN, VAL, TEST or UNDECIDED.

    Returns:
        (N,) uint8 of TRAIN, VAL, TEST. Samples of equal content are in the same split, and are
        counted once (under their lowest label) when the tenths are taken.
    """
    import numpy as np

    split_of: dict[bytes, int] = {}
    for content, code in zip(contents, supplied.tolist(), strict=True):
        if code != UNDECIDED:
            split_of[content] = max(code, split_of.get(content, TRAIN))

    strata: defaultdict[int, dict[bytes, None]] = defaultdict(dict)
    stratum_of: dict[bytes, int] = {}
    for content, label in sorted(zip(contents, labels.tolist(), strict=True)):
        if content not in split_of:
            strata[stratum_of.setdefault(content, label)][content] = None

    draws = [code for code in (TEST, VAL) if not np.any(supplied == code)]
    prefix = f"{seed}:".encode()
    for members in strata.values():
        order = sorted(members, key=lambda content: hashlib.sha256(prefix + content).digest())
        share = _tenth(len(order), len(draws))
        for i, content in enumerate(order):
            drawn = i // share if share else len(draws)
            split_of[content] = draws[drawn] if drawn < len(draws) else TRAIN
    return np.array([split_of[content] for content in contents], dtype=np.uint8)


def count_classes(
    labels: npt.NDArray[Any], split: npt.NDArray[Any], names: Sequence[str]
) -> _Counts:
    """Count samples per split and class name; samples without a class are `unlabelled`."""
    import numpy as np

    classes = {name: labels == number for number, name in enumerate(names)}
    if not names or (labels < 0).any():
        classes[UNLABELLED] = labels < 0
    counts = {
        key: {name: int(np.sum(of & (split == code))) for name, of in classes.items()}
        for code, key in enumerate(SPLITS)
    }
    return cast(_Counts, counts)
