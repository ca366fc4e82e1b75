"""Task `mass`: regression of log10 of the axion mass in eV, with a standard deviation, with the
MAE's encoder or from scratch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from lensdist.data.config import DataConfig
from lensdist.models.config import ClassifierConfig
from lensdist.tasks.encoder import EncoderSettings, EncoderTask, split_encoder
from lensdist.tasks.settings import Choice
from lensdist.tasks.types import Answer, Batch, Columns, Drawing, Split
from lensdist.utils.errors import RunError, UserError
from lensdist.utils.lazy import torch

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor, nn

    from lensdist.data.dataset import PackedSet

_BINS = 8  # of the true mass, in the table of scores and the figure
_SHOWN = 300  # images of the figure


class MassSettings(EncoderSettings):
    """Regression of the axion mass, with a standard deviation."""

    described: ClassVar[tuple[str, ...]] = ("model", "log10_range")

    model: ClassifierConfig = ClassifierConfig()
    log10_range: tuple[float, float] = Field(
        (-24.0, -22.0),
        description="log10 of the lowest and highest mass in eV that are expected, by default the "
        "simulators' prior: the network's output is scaled by it, and scores come in eight bins of "
        "it; masses beyond it are possible",
    )
    beta: float = Field(
        0.5,
        ge=0,
        le=1,
        description="weight of an image's log likelihood, as sigma^(2 beta) (Seitzer et al. 2022, "
        "arXiv:2203.09168). 0: none, so that images with a large sigma hardly move the mean; 1: "
        "all images move the mean alike, as with squared errors",
    )
    select: Literal["nll", "rmse"] = Field(
        "nll", description="the validation score that selects the best checkpoint"
    )

    @property
    def selects(self) -> Choice:
        return (self.select, "min")

    @property
    def pools_into_batchnorm(self) -> bool:
        return self.model.head_norm

    @model_validator(mode="after")
    def _range_rises(self) -> Self:
        low, high = self.log10_range
        if not low < high:
            raise ValueError(f"log10_range: {low:g} must be below {high:g}")
        return self


class MassTask(EncoderTask[MassSettings]):
    """Predict log10 of the mass: the network maps (B, C, H, W) to a normal distribution's mean and
    ln sigma (B, 2)."""

    name = "mass"
    settings = MassSettings
    head = "head."
    answer = "estimate"
    figures = ("mass.png",)
    incomplete = ("mass",)

    @classmethod
    def check_data(cls, cfg: MassSettings, packed: PackedSet, data: DataConfig) -> None:
        """Check that every image of the classes to train on has a mass."""
        import numpy as np

        cls.check_scored(cfg, packed)
        assert packed.mass is not None  # as just checked
        names = np.array([*packed.manifest.labels, ""])[packed.labels]  # -1: unlabelled
        known = np.isfinite(packed.mass)
        used = np.isin(names, data.classes) if data.classes else np.ones_like(known)
        if lacking := int((used & ~known).sum()):
            have = sorted({str(name) for name in names[known]} - {""})
            some = f"set data.classes=[{','.join(have)}]"
            raise UserError(
                f"{lacking:,} of {int(used.sum()):,} images in {packed.path} have no axion mass; "
                + (some if have and have != sorted(data.classes or ()) else "pack it without them")
            )

    @classmethod
    def check_scored(cls, cfg: MassSettings, packed: PackedSet) -> None:
        if packed.mass is None:
            raise UserError(
                f"{packed.path} holds no axion masses; simulate family model_i, model_ii or "
                "model_iii, or pack axion files with their masses"
            )

    def network(self) -> nn.Module:
        from lensdist.models.classifier import Classifier

        return Classifier(self.cfg.model, 2)

    def split(self, model: nn.Module, trains: Callable[[str], bool]) -> Split | None:
        return split_encoder(model, trains)

    def loss(self, model: nn.Module, batch: Batch, key: int) -> Tensor:
        mean, ln_sigma = self.forward(model, batch, key).float().unbind(1)
        wanted = (batch["mass"].log10() - self._middle) / self._half
        weight = (2 * self.cfg.beta * ln_sigma.detach()).exp()
        return (weight * _nll(mean - wanted.float(), ln_sigma)).mean()

    # ---- scores

    def outputs(self, model: nn.Module, batch: Batch) -> Batch:
        mean, sigma = self._estimate(model(self.image(batch))).unbind(1)
        return {"log10_mass": mean, "log10_mass_sigma": sigma, "mass": batch["mass"]}

    def score(self, outputs: Batch) -> dict[str, Any]:
        truth, off, sigma = _known(outputs)
        variance = float((truth - truth.mean()).square().mean())
        return {
            "n": len(truth),
            "no_mass": len(outputs["mass"]) - len(truth),
            "nll": float(_nll(off, sigma.log()).mean()),
            "r2": 1 - float(off.square().mean()) / variance if variance else math.nan,
            **_errors(off, sigma),
        }

    def intervals(self, outputs: Batch) -> dict[str, Any]:
        from lensdist.metrics.seeds import paired_ratio

        truth, off, sigma = _known(outputs)
        low, high = paired_ratio(off.square(), (truth - truth.mean()).square())["ci"]
        nll = _of_mean(_nll(off, sigma.log()))
        return {"nll_ci": nll, "r2_ci": [1 - high, 1 - low], **_intervals(off, sigma)}

    @staticmethod
    def each(outputs: Batch) -> dict[str, Tensor]:
        return {"squared_error": _known(outputs)[1].square()}

    def mistakes(self, outputs: Batch, most: int) -> list[tuple[int, dict[str, str]]]:
        truth, mean = outputs["mass"].double().log10(), outputs["log10_mass"].double()
        sigma = outputs["log10_mass_sigma"].double()
        pull = ((mean - truth).abs() / sigma).nan_to_num(-1)  # without a mass: last
        order = pull.argsort(descending=True, stable=True)[:most].tolist()
        return [
            (i, {"true": f"{truth[i]:.2f}", "predicted": f"{mean[i]:.2f} ± {sigma[i]:.2f}"})
            for i in order
            if pull[i] >= 0
        ]

    def draw(self, what: Drawing) -> tuple[dict[str, Any], list[Path]]:
        truth, off, sigma = _known(what.outputs)
        rows = self._by_mass(truth, off, sigma)
        shown = slice(None, None, -(-len(truth) // _SHOWN))
        points = [values[shown].numpy() for values in (truth, off, sigma)]
        path = _figure(what.folder / "mass.png", points, rows, what.scores, what.title)
        return {"by_mass": rows}, [path]

    def _by_mass(self, truth: Tensor, off: Tensor, sigma: Tensor) -> list[dict[str, Any]]:
        """Score bins of the true mass; the outermost take what lies beyond them."""
        edges = torch.linspace(*self.cfg.log10_range, _BINS + 1, dtype=torch.float64)
        which = torch.bucketize(truth, edges[1:-1], right=True)
        rows: list[dict[str, Any]] = []
        for i in range(_BINS):
            here = which == i
            row: dict[str, Any] = {"n": int(here.sum()), "sigma": float(sigma[here].mean())}
            row |= {"log10_mass_low": float(edges[i]), "log10_mass_high": float(edges[i + 1])}
            row |= _errors(off[here], sigma[here])
            rows.append(row | (_intervals(off[here], sigma[here]) if row["n"] else {}))
        return rows

    # ---- use of a trained model

    def predict(
        self, model: nn.Module, raw: Tensor, good: Tensor | None, batch: int
    ) -> dict[str, Tensor]:
        seen, measured = self.examined(raw, good)
        found = self._estimate(model(seen))
        own = {"estimate": found, "log10_mass": found[:, 0], "log10_mass_sigma": found[:, 1]}
        return own | measured

    @property
    def columns(self) -> Columns:
        return {"log10_mass": float, "log10_mass_sigma": float}

    def row(self, answer: Answer) -> list[str | float]:
        return [float(answer[name]) for name in self.columns]

    def graph(self, model: nn.Module, image: Tensor) -> Tensor:
        return self._estimate(model(self.preprocess(image)))

    # ---- units

    @property
    def _middle(self) -> float:
        return sum(self.cfg.log10_range) / 2

    @property
    def _half(self) -> float:
        low, high = self.cfg.log10_range
        return (high - low) / 2

    def _estimate(self, drawn: Tensor) -> Tensor:
        """Turn the network's output into log10 of the mass in eV and its sigma: (B, 2)."""
        mean, ln_sigma = drawn.float().unbind(1)
        return torch.stack((self._middle + self._half * mean, self._half * ln_sigma.exp()), 1)


def _nll(off: Tensor, ln_sigma: Tensor) -> Tensor:
    """Return -ln p of each image under a normal distribution that is `off` by so much."""
    return 0.5 * ((off * (-ln_sigma).exp()).square() + math.log(2 * math.pi)) + ln_sigma


def _known(outputs: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Return true log10 mass, predicted minus true, and sigma of the images that have a mass.

    Raises:
        RunError: none has.
    """
    known = outputs["mass"].isfinite()
    if not known.any():
        raise RunError(f"none of {len(known)} images has an axion mass to score against")
    truth, mean, sigma = (
        values[known].cpu().double()
        for values in (outputs["mass"].log10(), outputs["log10_mass"], outputs["log10_mass_sigma"])
    )
    return truth, mean - truth, sigma


def _inside(off: Tensor, sigma: Tensor) -> dict[int, Tensor]:
    """Return which images lie within the normal distribution's central 68 and 95 %."""
    from lensdist.metrics.bootstrap import Z95
    from lensdist.metrics.super_resolution import Z68

    return {share: off.abs() <= z * sigma for share, z in ((68, Z68), (95, Z95))}


def _errors(off: Tensor, sigma: Tensor) -> dict[str, float]:
    """Return errors in dex, and the shares of images within the central 68 and 95 %."""
    inside = _inside(off, sigma)
    return {
        "bias": float(off.mean()),
        "rmse": float(off.square().mean().sqrt()),
        "scatter": float((off - off.mean()).square().mean().sqrt()),
        **{f"coverage_{share}": float(hits.double().mean()) for share, hits in inside.items()},
    }


def _intervals(off: Tensor, sigma: Tensor) -> dict[str, list[float]]:
    """Return 95 % intervals of `_errors`."""
    from lensdist.metrics.bootstrap import wilson

    inside = _inside(off, sigma)
    return {
        "bias_ci": _of_mean(off),
        "rmse_ci": [math.sqrt(max(end, 0)) for end in _of_mean(off.square())],
        "scatter_ci": [math.sqrt(max(end, 0)) for end in _of_mean((off - off.mean()).square())],
        **{
            f"coverage_{share}_ci": wilson(int(hits.sum()), len(hits))
            for share, hits in inside.items()
        },
    }


def _of_mean(values: Tensor) -> list[float]:
    from lensdist.metrics.seeds import mean_interval

    return mean_interval(values)


def _figure(
    path: Path,
    points: Sequence[npt.NDArray[np.float64]],
    rows: Sequence[dict[str, Any]],
    scores: dict[str, Any],
    title: str,
) -> Path:
    """Draw predicted against true masses with their sigma, and what they are off by.

    `points` are some images' true masses, errors and sigmas; `rows` the bins of all images.
    """
    from lensdist.metrics.drawing import COLOURS, GREY, panels, save

    truth, off, sigma = points
    fig, (ax, low) = panels(2, 4.6, 4.2, f"{title} (n = {scores['n']:,}; {len(truth):,} drawn)")
    bars = {"fmt": "o", "ms": 2, "lw": 0.5, "alpha": 0.5, "color": COLOURS[0], "zorder": 1}
    ax.errorbar(truth, truth + off, yerr=sigma, label="images, with their sigma", **bars)
    low.errorbar(truth, off, yerr=sigma, **bars)
    edges = [rows[0]["log10_mass_low"], rows[-1]["log10_mass_high"]]
    ax.plot(edges, edges, color=GREY, lw=0.8, label="predicted = true")
    low.axhline(0, color=GREY, lw=0.8)
    full = [row for row in rows if row["n"]]
    middle = [(row["log10_mass_low"] + row["log10_mass_high"]) / 2 for row in full]
    bias, scatter, said = ([row[key] for row in full] for key in ("bias", "scatter", "sigma"))
    band = {"color": COLOURS[4], "lw": 0, "alpha": 0.35, "label": "mean sigma in a bin"}
    low.fill_between(middle, [-each for each in said], said, zorder=0, **band)
    bins = {"fmt": "s", "ms": 4, "capsize": 2, "color": COLOURS[1], "zorder": 2}
    low.errorbar(middle, bias, yerr=scatter, label="bins: bias, scatter", **bins)
    ax.set(xlabel="true log10(m / eV)", ylabel="predicted log10(m / eV)")
    low.set(xlabel="true log10(m / eV)", ylabel="predicted - true [dex]")
    shares = " and ".join(f"{scores[f'coverage_{share}']:.1%}" for share in (68, 95))
    low.set_title(f"within 68 and 95 % intervals: {shares}", fontsize=8, color=GREY)
    for each, place in ((ax, "upper left"), (low, "upper right")):
        each.legend(loc=place, frameon=False, fontsize=8)
        each.locator_params(nbins=5)
    return save(fig, path)
