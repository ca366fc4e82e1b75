"""Read batches of a packed set, which is memory-mapped or resident on a device.

Loader workers are not needed: gathering a batch is one copy out of the page cache. Sets may be
larger than memory, because the kernel can drop mapped pages.
"""

from __future__ import annotations

import itertools
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from lensdist.data.manifest import FILES, Manifest
from lensdist.data.splits import SPLITS
from lensdist.data.verification import Verification, Verify, open_arrays
from lensdist.utils.errors import UserError

Batch = dict[str, torch.Tensor]

_KEYS = {  # file -> key of a batch
    "images.npy": "image",
    "labels.npy": "label",
    "targets.npy": "target",
    "truths.npy": "truth",
    "mass.npy": "mass",
    "badpix.npy": "badpix",
    "weights.npy": "weight",
}
_CACHED = 32  # images converted at a time; 32 of 150^2 in float16 take 1.4 MB of a core's cache
_PIXELS = ("image", "target", "truth", "weight")  # the entries that `dtype` of `gather` applies to


class Arrays:
    """The arrays of a packed set as tensors on one device."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors = tensors

    def gather(
        self,
        indices: npt.NDArray[np.int64] | torch.Tensor,
        out: Batch | None = None,
        dtype: torch.dtype | None = torch.float32,
    ) -> Batch:
        """Copy samples out of the set.

        Args:
            indices: (n,) int64 sample numbers, in any order, repeats allowed.
            out: a batch of an earlier call, whose memory is used again if it fits.
            dtype: the type of image, target and weight; None leaves them as packed, for callers
                that move float16 to a device and convert there.

        Returns:
            `image` (n, C, H, W), `label` (n,) int64 and, if the set has them, `target`
            (n, C, H', W'), `truth`, the target without its noise, `mass` (n,) float64 in eV,
            `badpix` (n, C, H, W) bool and `weight` (n, C, H, W).
        """
        device = self._tensors["image"].device
        rows = torch.as_tensor(indices, dtype=torch.int64).to(device, non_blocking=True)
        # index_select is as fast as np.take on one thread, and uses all threads of torch.
        batch: Batch = {}
        for key, tensor in self._tensors.items():
            wanted = dtype if dtype is not None and key in _PIXELS else tensor.dtype
            shape = (len(rows), *tensor.shape[1:])
            into = (out or {}).get(key)
            if into is None or into.dtype != wanted or into.shape != shape:
                into = torch.empty(shape, dtype=wanted, device=device)
            if wanted == tensor.dtype:
                torch.index_select(tensor, 0, rows, out=into)
            else:
                # A CPU converts fastest in its cache; a GPU is fastest with few kernels.
                step = _CACHED if device.type == "cpu" else max(1, len(rows))
                parts = zip(torch.split(into, step), torch.split(rows, step), strict=True)
                for part, some in parts:
                    part.copy_(tensor.index_select(0, some))
            batch[key] = into
        return batch


class PackedSet(Arrays):
    """A packed set, opened, verified and memory-mapped.

    Args:
        path: the folder.
        verify: when to hash the large arrays; see `Verify`.
        background: hash in a thread if it would take more than a few seconds; then
            `verification` has the result.

    Raises:
        UserError: it is not a packed set, or a file is missing, altered or of another shape.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        verify: Verify = "auto",
        *,
        background: bool = False,
    ) -> None:
        self.path = Path(path)
        self.manifest = Manifest.load(self.path)
        arrays = open_arrays(self.path, self.manifest)
        self.verification = Verification(
            self.path, self.manifest.files, verify, background=background
        )
        self._split = np.asarray(arrays.pop("split.npy"))
        self.labels: npt.NDArray[np.int64] = np.asarray(arrays["labels.npy"], np.int64)
        """(N,) indices into `manifest.labels`; -1 is unlabelled."""
        arrays["labels.npy"] = self.labels
        mass = arrays.get("mass.npy")
        self.mass: npt.NDArray[np.float64] | None = None if mass is None else np.asarray(mass)
        """(N,) axion masses in eV, NaN where an image has none; None: the set has no masses."""
        self.nbytes = sum(array.nbytes for array in arrays.values())
        """Bytes that `resident` would occupy."""
        with warnings.catch_warnings():
            # torch warns that mapped files are read-only; nothing here writes to them.
            warnings.filterwarnings("ignore", message=".*not writable")
            super().__init__(
                {
                    key: torch.from_numpy(arrays[name])
                    for name, key in _KEYS.items()
                    if name in arrays
                }
            )

    def __len__(self) -> int:
        return self.manifest.count

    def require_pairs(self, factor: int, truth: bool = False) -> None:
        """Check that super-resolution by a factor can use the set.

        Raises:
            UserError: it has no pairs, pairs of another factor, or no `truth`.
        """
        about = self.manifest
        if about.target_shape is None:
            raise UserError(
                f"{self.path} holds no pairs; pack a folder of HR/ and LR/, or simulate family sr"
            )
        bands, height, width = about.image_shape
        if about.target_shape != (bands, factor * height, factor * width):
            shapes = " -> ".join(
                "x".join(map(str, shape)) for shape in (about.image_shape, about.target_shape)
            )
            raise UserError(
                f"{self.path} holds pairs of {shapes} but the model enlarges by {factor}; train "
                f"one with model.factor={about.target_shape[1] // height}, if that is 2, 3 or 4"
            )
        if truth and "truth" not in self._tensors:
            raise UserError(
                f"learn: truth needs targets without noise, and {self.path} has none; simulate a "
                "set with --truth"
            )

    def indices(self, split: str) -> npt.NDArray[np.int64]:
        """Return the samples of `train`, `val`, `test` or `all`: (n,) int64, ascending."""
        if split == "all":
            return np.arange(len(self), dtype=np.int64)
        return np.flatnonzero(self._split == SPLITS.index(split)).astype(np.int64)

    def name_of(self, row: int) -> str:
        """Name a sample, and the file that it was made of where that is known."""
        try:
            with (self.path / FILES).open(encoding="utf-8") as lines:
                name = json.loads(next(itertools.islice(lines, row, None)))["name"]
        except (OSError, ValueError, LookupError, TypeError, StopIteration):
            name = ""
        return f"sample {row} ({name})" if name else f"sample {row}"

    def resident(self, device: torch.device | str) -> Arrays:
        """Return the set with all its arrays copied to a device."""
        return Arrays({key: t.to(device, copy=True) for key, t in self._tensors.items()})
