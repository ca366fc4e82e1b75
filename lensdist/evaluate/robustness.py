"""Score a model on images that are harder than its training set: `RUN/eval/hard.json`.

The same lenses are simulated several times: as in the packed set; for classifiers, with less mass
in substructure; and with a wider or narrower point-spread function. So a difference in accuracy can
be paired lens by lens. (The noise is drawn anew, since its amount depends on the image.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import torch
from pydantic import ValidationError

from lensdist.data.manifest import DType
from lensdist.evaluate.run import Subject
from lensdist.metrics import figures
from lensdist.sim.config import FamilyName, SimConfig
from lensdist.sim.simulator import BLOCK, Simulator
from lensdist.tasks.types import Batch
from lensdist.utils import rng
from lensdist.utils.errors import UserError
from lensdist.utils.files import to_json, write_atomic
from lensdist.utils.sealed import sealed

PLAIN = "plain"
VARIANTS: Mapping[str, Mapping[str, float]] = {
    PLAIN: {},
    "mass_third": {"substructure_scale": 1 / 3},
    "mass_tenth": {"substructure_scale": 1 / 10},
    "psf_wide": {"psf_scale": 1.3},
    "psf_narrow": {"psf_scale": 0.7},
}
"""Factors on settings of the simulator, by the names of the variants in the scores."""

_TITLES = {
    PLAIN: "as the set itself",
    "mass_third": "substructure mass ÷ 3",
    "mass_tenth": "substructure mass ÷ 10",
    "psf_wide": "PSF 30 % wider",
    "psf_narrow": "PSF 30 % narrower",
}

_MOST = 100_000  # images of each class: a limit against typing errors


@dataclass(frozen=True)
class Plan:
    """The images to simulate."""

    variants: dict[str, SimConfig]
    n_per_class: int
    seed: int

    @property
    def key(self) -> int:
        """The lenses' key.

        A set is written with the key of (seed, "simulate"). The same seed with another purpose
        never has the same key: `rng.key` is one-to-one in each of its parts.
        """
        return rng.key(self.seed, "hard")


class Simulated:
    """Simulated images in place of a split's, equal to those that `write_packed` would store.

    Request blocks of `BLOCK` from the first image on; their images share noise (see `Simulator`).
    They are simulated on the CPU, since a GPU's random numbers would give other images.

    Args:
        cfg: the simulator's settings.
        n_per_class: images of each class.
        key: a key from `rng.key`.
        labels: the classes of `cfg`, in the order of the model's labels; empty for pairs, which
            have no labels.
        dtype: type that images are rounded to, as if stored.
        device: of the batches.
    """

    def __init__(
        self,
        cfg: SimConfig,
        n_per_class: int,
        key: int,
        labels: tuple[str, ...],
        dtype: DType = "float32",
        device: torch.device | str = "cpu",
    ) -> None:
        self._simulator = Simulator(cfg, "cpu", torch.float64)
        self._key = key
        names = self._simulator.labels
        self._n = n_per_class * len(names)
        # The simulator numbers classes in its family's order, the model in its own.
        self._renumber = torch.tensor([labels.index(x) if labels else -1 for x in names])
        self._dtype = getattr(torch, dtype)
        self._device = device

    def __len__(self) -> int:
        return self._n

    def name_of(self, sample: int) -> str:
        """See `View.name_of`."""
        return f"simulated sample {sample}"

    def gather(self, places: npt.NDArray[np.int64]) -> Batch:
        """Return `image` (n, C, H, W) float32, `label` (n,) and `sample` (n,) int64.

        Pairs also have `target` and `truth`.
        """
        made = self._simulator.batch(self._key, torch.from_numpy(places))
        batch = {"label": self._renumber[made["label"]], "sample": made["sample"]}
        for name in ("image", "target", "truth"):
            if name in made:
                batch[name] = made[name].to(self._dtype).float()
        return {name: value.to(self._device) for name, value in batch.items()}


def plan(subject: Subject, n_per_class: int, family: str | None = None) -> Plan:
    """Return the images to simulate, checked before anything is computed.

    Args:
        subject: the model, and the packed set whose settings and seed the hard sets take.
        n_per_class: images of each class in each variant.
        family: the simulator of such images, for a set that does not record it.

    Raises:
        UserError: the model is a masked autoencoder, its images cannot be simulated, or
            `eval/hard.json` holds the scores of other data.
    """
    subject.target("hard")
    task = subject.task
    if not task.harder:
        raise UserError(
            f"--hard is for classifiers and super-resolution, and {subject.run} is of task "
            f"{subject.model.task}"
        )
    if not 1 <= n_per_class <= _MOST:
        raise UserError(f"--hard takes 1 to {_MOST:,} images a class, not {n_per_class}")
    manifest, path = subject.packed.manifest, subject.packed.path
    settings, seed = _settings(subject, family), manifest.seed
    if task.needs_labels:
        settings["classes"] = subject.model.labels
    try:
        plain = SimConfig(**settings)
        variants = {
            name: SimConfig(
                **settings | {k: getattr(plain, k) * v for k, v in VARIANTS[name].items()}
            )
            for name in task.harder
        }
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        what = first["msg"].removeprefix("Value error, ")
        raise UserError(
            f"--hard cannot simulate images like those of {path}: {where}{': ' * bool(where)}{what}"
        ) from error
    simulator = Simulator(plain)
    shapes = (simulator.image_shape, simulator.target_shape if task.pairs else None)
    theirs = (manifest.image_shape, manifest.target_shape if task.pairs else None)
    if shapes != theirs:
        ours, wanted = (
            " -> ".join("x".join(map(str, shape)) for shape in each if shape)
            for each in (shapes, theirs)
        )
        remedy = "no simulator makes such pairs" if task.pairs else "give another --family"
        raise UserError(
            f"--hard would make images of {ours} with {plain.family}, but {path} holds {wanted}; "
            f"{remedy}"
        )
    return Plan(variants, n_per_class, seed)


def _settings(subject: Subject, family: str | None) -> dict[str, Any]:
    """Return the simulator's settings for a packed set, or for a family."""
    path = subject.packed.path
    own = subject.packed.manifest.source.get("simulated")
    if isinstance(own, dict):
        if family not in (None, own.get("family")):
            raise UserError(
                f"{path} was simulated as {own.get('family')}, not {family}; leave --family out"
            )
        return dict(own)
    if family is None:
        known = ", ".join(
            name for name in get_args(FamilyName) if (name == "sr") == subject.task.pairs
        )
        raise UserError(
            f"{path} does not say how its images were simulated; give --family with one of {known}"
        )
    return {"family": family}


def score_hard(subject: Subject, plan: Plan) -> tuple[dict[str, Any], list[Path]]:
    """Simulate and score all variants; write `eval/hard.json` and, with an accuracy, the figure.

    The figure is `figures/hard.png`.

    Returns:
        Scores by variant, from `Subject.scores`, with the task's comparison with the plain variant,
        lens by lens; and the files written.
    """
    target = subject.target("hard")
    labels = subject.model.labels
    found: dict[str, dict[str, Any]] = {}
    plain: Batch = {}
    for name, cfg in plan.variants.items():
        images = Simulated(
            cfg,
            plan.n_per_class,
            plan.key,
            labels,
            subject.packed.manifest.dtype,
            subject.world.device,
        )
        outputs = subject.outputs(images, BLOCK)
        found[name] = subject.scores(outputs)
        if name == PLAIN:
            plain = outputs
        else:
            found[name] |= subject.task.compare(outputs, plain)
    if not subject.world.main:
        return found, []
    facts = {
        **subject.facts(),
        "simulated": plan.variants[PLAIN].model_dump(mode="json"),
        "factors": {name: VARIANTS[name] for name in found},
        "n_per_class": plan.n_per_class,
        "seed": plan.seed,
        "variants": found,
    }
    if "accuracy" not in found[PLAIN]:
        return found, [write_atomic(target, to_json(sealed(facts)))]
    written = write_atomic(target, to_json(sealed(facts | {"chance": 1 / len(labels)})))
    drawn = figures.variants(
        subject.out / "figures" / "hard.png",
        {_TITLES[name]: scores for name, scores in found.items()},
        1 / len(labels),
        f"Harder images, {subject.description['preset']}",
    )
    return found, [written, drawn]
