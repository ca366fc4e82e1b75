"""Random numbers as pure functions of (seed, purpose, epoch, sample).

No generator in lensdist carries state from one step to the next. So a resumed run has no generator
to restore, and a sample gets the same numbers on any rank of any number of processes. The mixing
function is SplitMix64 (Steele, Lea & Flood 2014, OOPSLA,
doi:10.1145/2714064.2660195), whose integer arithmetic is exact and equal on CPU and GPU.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

_GOLDEN = 0x9E3779B97F4A7C15
_M1 = 0xBF58476D1CE4E5B9
_M2 = 0x94D049BB133111EB
_WORD = (1 << 64) - 1


def _mix(z: int) -> int:
    z = (z + _GOLDEN) & _WORD
    z = ((z ^ (z >> 30)) * _M1) & _WORD
    z = ((z ^ (z >> 27)) * _M2) & _WORD
    return z ^ (z >> 31)


def key(*parts: int | str) -> int:
    """Hash integers and names, in order, into one 64-bit key: `key(seed, "mask", epoch)`."""
    h = 0
    for part in parts:
        if isinstance(part, str):
            part = int.from_bytes(hashlib.blake2b(part.encode(), digest_size=8).digest(), "little")
        h = _mix(h ^ _mix(part & _WORD))
    return h


def _signed(z: int) -> int:
    return z - (1 << 64) if z >= 1 << 63 else z


def _shift(z: torch.Tensor, bits: int) -> torch.Tensor:
    """Shift right without sign: torch's >> on int64 copies the sign bit, so it is masked."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _mix_tensor(z: torch.Tensor) -> torch.Tensor:
    z = z + _signed(_GOLDEN)
    z = (z ^ _shift(z, 30)) * _signed(_M1)
    z = (z ^ _shift(z, 27)) * _signed(_M2)
    return z ^ _shift(z, 31)


def uniform(k: int, samples: torch.Tensor, n: int) -> torch.Tensor:
    """Return uniform numbers in the open interval (0, 1), one row per sample.

    Args:
        k: a key from `key`.
        samples: (N,) int64 sample numbers, on any device.
        n: numbers per sample.

    Returns:
        (N, n) float64 on the device of `samples`; row i depends on `k` and `samples[i]` only.
    """
    import torch

    base = _mix_tensor(_mix_tensor(samples.long()) ^ _signed(k))
    steps = torch.arange(n, device=samples.device, dtype=torch.int64) * _signed(_GOLDEN)
    bits = _shift(_mix_tensor(base[:, None] + steps), 12)  # 52 bits, so that +0.5 stays exact
    return (bits.double() + 0.5) * 2.0**-52


def generator(k: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a torch generator for one fixed block of work, such as the noise of a batch."""
    import torch

    return torch.Generator(device=device).manual_seed(k & ((1 << 63) - 1))


def permutation(k: int, n: int) -> npt.NDArray[np.int64]:
    """Return a permutation of range(n), the same under every version of NumPy."""
    with np.errstate(over="ignore"):
        z = np.arange(n, dtype=np.uint64) * np.uint64(_GOLDEN) + np.uint64(k)
        for shift, factor in ((30, _M1), (27, _M2)):
            z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
        z ^= z >> np.uint64(31)
    return np.argsort(z, kind="stable").astype(np.int64)
