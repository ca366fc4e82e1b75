"""Compute metrics of super-resolved images, and their means over a split with paired intervals.

Peak signal-to-noise ratio and SSIM (Wang et al. 2004, doi:10.1109/TIP.2003.819861: a Gaussian
window of 11 pixels, sigma 1.5; the mean over all pixels, images mirrored at borders) use images in
the units found on disk; for SSIM, HR's darkest pixel is 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lensdist.metrics.bootstrap import Z95
from lensdist.metrics.seeds import mean_interval, paired_difference, paired_ratio
from lensdist.models.resample import bicubic, with_means
from lensdist.utils.errors import RunError
from lensdist.utils.torchvision_compat import import_torchvision

Z68 = 0.994457883209753  # the normal distribution's 84 % point, as Z95 is its 97.5 % point

Scores = Mapping[str, Tensor]


def of_images(
    image: Tensor,
    lr: Tensor,
    hr: Tensor,
    *,
    truth: Tensor | None = None,
    weight: Tensor | None = None,
    data_range: float = 1.0,
    ssim: bool = True,
) -> dict[str, Tensor]:
    """Score each image, and bicubic interpolation beside it.

    Args:
        image: (B, C, f H, f W) enlarged from `lr`, in the units found on disk.
        lr: (B, C, H, W); bad pixels as the model's input has them, since bicubic uses them too.
        hr: (B, C, f H, f W) the target.
        truth: `hr` without its noise, if known.
        weight: (B, C, f H, f W) weight of each pixel, 0 to leave it out; by default all are equal.
        data_range: largest minus smallest possible value.
        ssim: whether to compute it.

    Returns:
        (B,) each: `mse`, `psnr` and `ssim` of the image, and with the suffix `_bicubic`. With a
        truth also `mse_oracle`, of the best that LR's means allow: the truth, moved to them; and
        `mse_truth`, `mse_truth_bicubic`, relative to the truth.
    """
    factor = hr.shape[-1] // lr.shape[-1]
    made = {"": image, "_bicubic": bicubic(lr, factor)}
    scores: dict[str, Tensor] = {}
    for suffix, each in made.items():
        scores[f"mse{suffix}"] = mse = _mean_square(each - hr, weight)
        scores[f"psnr{suffix}"] = 10 * torch.log10(data_range**2 / mse)
        if ssim:
            scores[f"ssim{suffix}"] = _ssim(each, hr, weight, data_range)
        if truth is not None:
            scores[f"mse_truth{suffix}"] = _mean_square(each - truth, weight)
    if truth is not None:
        scores["mse_oracle"] = _mean_square(oracle(truth, lr) - hr, weight)
    return scores


def oracle(truth: Tensor, lr: Tensor) -> Tensor:
    """Return the truth (B, C, f H, f W), each block moved to its mean in LR (B, C, H, W).

    A model that had the lens without noise could not do better, except for the larger part that a
    block's brighter pixels have in its excess.
    """
    return with_means(truth, lr)


def coverage(pull: Tensor, weight: Tensor | None = None) -> dict[str, Tensor]:
    """Return the share of each image's pixels within the central 68 and 95 % that sigma predicts.

    Args:
        pull: (B, C, H, W) distance from the output, in units of its sigma.
        weight: (B, C, H, W); pixels of weight 0 do not count.
    """
    counts = torch.ones_like(pull) if weight is None else (weight > 0).to(pull)
    n = counts.sum((1, 2, 3)).clamp_min(1)
    return {
        f"coverage_{share}": ((pull <= z) * counts).sum((1, 2, 3)) / n
        for share, z in ((68, Z68), (95, Z95))
    }


def summary(scores: Scores) -> dict[str, Any]:
    """Return means over the images of a split, from `of_images` and `coverage`.

    Returns:
        `n`, the mean of every score, `psnr_gain` (over bicubic) and, with a truth, `gap`:
        (MSE - oracle's) / (bicubic's - oracle's), 1 for bicubic and 0 for the oracle. An image
        without any error has no finite PSNR: `no_psnr` counts them, and `psnr` and
        `psnr_gain` leave them out.

    Raises:
        RunError: there is no image, or an output is not finite.
    """
    each = {name: value.detach().cpu().double() for name, value in scores.items()}
    n = len(next(iter(each.values())))
    for name, value in each.items():
        good = (
            value.isfinite() | (value == math.inf) if name.startswith("psnr") else value.isfinite()
        )
        if not n or not good.all():
            raise RunError(f"{name} of {n} images must not be empty, and must be finite")
    finite = each["psnr"].isfinite() & each["psnr_bicubic"].isfinite()
    found: dict[str, Any] = {"n": n}
    for name, value in each.items():
        kept = value[finite] if name.startswith("psnr") else value
        found[name] = kept.mean().item() if len(kept) else math.nan
    found["psnr_gain"] = found["psnr"] - found["psnr_bicubic"]
    found["no_psnr"] = n - int(finite.sum())
    if "mse_oracle" in each:
        below = found["mse_bicubic"] - found["mse_oracle"]
        found["gap"] = (found["mse"] - found["mse_oracle"]) / below if below > 0 else math.nan
    return found


def intervals(scores: Scores) -> dict[str, list[float]]:
    """Return 95 % intervals over the images, [low, high], of `summary`'s values, by name + `_ci`.

    `psnr_gain` and `gap` are paired image by image with bicubic and the oracle.
    """
    found: dict[str, list[float]] = {}
    each = {name: value.detach().cpu().double() for name, value in scores.items()}
    finite = each["psnr"].isfinite() & each["psnr_bicubic"].isfinite()
    if not finite.any():
        return found
    for name, value in each.items():
        kept = value[finite] if name.startswith("psnr") else value
        found[f"{name}_ci"] = mean_interval(kept)
    gain = paired_difference(each["psnr"][finite], each["psnr_bicubic"][finite])
    found["psnr_gain_ci"] = gain["ci"]
    if "mse_oracle" in each:
        found["gap_ci"] = gap(each["mse"], each["mse_bicubic"], each["mse_oracle"])["ci"]
    return found


def gap(mse: Tensor, of_bicubic: Tensor, of_oracle: Tensor) -> dict[str, Any]:
    """Return (MSE - oracle's) / (bicubic's - oracle's) with its interval, paired over the images.

    Args:
        mse: (N,) or (S, N) of each image, of S seeds.
        of_bicubic, of_oracle: (N,) of the same images.

    Returns:
        `gap` (NaN if bicubic is as good as the oracle or better) and `ci` [low, high].
    """
    of_bicubic, of_oracle = (x.expand_as(mse) for x in (of_bicubic, of_oracle))
    found = paired_ratio(mse - of_oracle, of_bicubic - of_oracle)
    return {"gap": found["ratio"], "ci": found["ci"]}


def _ssim(a: Tensor, b: Tensor, weight: Tensor | None, data_range: float) -> Tensor:
    """Return (B,) SSIM of images (B, C, H, W): the mean over bands and pixels.

    Both are shifted so that `b` is 0 at its darkest pixel: float32 would lose all precision when it
    subtracts squares of a sky background of thousands.
    """
    import_torchvision()  # torchmetrics imports it, and fails if its operators do not load
    from torchmetrics.functional.image import structural_similarity_index_measure

    good = b if weight is None else torch.where(weight > 0, b, math.inf)
    dark = good.amin((1, 2, 3), keepdim=True)
    if weight is not None:  # bad pixels are equal in both
        a, b = (torch.where(weight > 0, x, dark) for x in (a, b))
    found: Tensor = structural_similarity_index_measure(
        (a - dark).float(), (b - dark).float(), reduction="none", data_range=data_range
    )
    return found.reshape(len(a))


def _mean_square(error: Tensor, weight: Tensor | None) -> Tensor:
    """Return (B,) of (B, C, H, W), in double: gains are parts in ten thousand of the error."""
    square = error.double().square()
    if weight is None:
        return square.mean((1, 2, 3))
    square = torch.where(weight > 0, square, 0.0) * weight
    return square.sum((1, 2, 3)) / weight.double().sum((1, 2, 3)).clamp_min(1e-12)
