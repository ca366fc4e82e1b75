"""Classify without pretraining: logistic regression on the residual from smooth lenses.

A principal-component basis of images without substructure describes smooth lenses. The residual of
an image is substructure, noise, and the basis's own error; a few statistics of that residual go
into a logistic regression on the labelled images.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lensdist.data.smooth import IMAGES, principal

COMPONENTS = 120  # from the field's notes; 99.99 % of a smooth lens's variance
_RINGS = 8
_QUANTILES = (0.5, 0.9, 0.99)


class ResidualFeatures:
    """Statistics of the residual from smooth lenses.

    Args:
        smooth: (M, C, H, W) images without substructure; at most the first 1,500 are used.
        components: of the basis, at most M.
    """

    def __init__(self, smooth: Tensor, components: int = COMPONENTS) -> None:
        self._smooth = principal(smooth[:IMAGES], components)
        self._rings = _rings(*smooth.shape[-2:])

    def __call__(self, images: Tensor) -> Tensor:
        """Map (N, C, H, W) to features (N, F): logarithms of statistics of the squared residual.

        They are its mean in all, in rings about the centre, its quantiles, its maximum and
        kurtosis.
        """
        square = (images - self._smooth.of(images)).flatten(1).double().square()
        power = square.mean(1, keepdim=True)
        rings = square.view(len(images), -1, self._rings.shape[1]).mean(1) @ self._rings.T
        quantiles = square.quantile(torch.tensor(_QUANTILES, dtype=square.dtype), dim=1).T
        peak = square.amax(1, keepdim=True)
        kurtosis = square.square().mean(1, keepdim=True) / power.square().clamp_min(1e-300)
        all_ = torch.cat([power, rings, quantiles, peak, kurtosis], dim=1)
        return all_.clamp_min(1e-30).log()


def logistic_regression(
    features: Tensor, labels: Tensor, test: Tensor, classes: int, c: float = 1.0
) -> Tensor:
    """Return logits (T, classes) of the test features.

    Features are standardised by the labelled images alone. The penalty is ||weights||² / (2 c n),
    scikit-learn's default.

    Args:
        features: (n, F) of the labelled images.
        labels: (n,) in [0, classes).
        test: (T, F).
        classes: their number.
        c: inverse strength of the penalty.
    """
    mean, std = features.mean(0), features.std(0).clamp_min(1e-12)
    x, y = ((features - mean) / std).double(), labels
    model = nn.Linear(x.shape[1], classes, dtype=torch.float64)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=500, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss = loss + model.weight.square().sum() / (2 * c * len(x))
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        return model(((test - mean) / std).double()).float()  # type: ignore[no-any-return]


def _rings(height: int, width: int) -> Tensor:
    """Return (rings, H * W) float64 weights of equally wide rings; corners join the last."""
    y = torch.arange(height, dtype=torch.float64) - (height - 1) / 2
    x = torch.arange(width, dtype=torch.float64) - (width - 1) / 2
    radius = torch.hypot(y[:, None], x[None, :]).flatten() / (min(height, width) / 2)
    ring = (radius * _RINGS).long().clamp(max=_RINGS - 1)
    members = nn.functional.one_hot(ring, _RINGS).T.double()
    return members / members.sum(1, keepdim=True)
