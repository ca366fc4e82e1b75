"""What is run, in which order: what `configs/chains/<name>.yaml` may say."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from lensdist.config.base import Strict
from lensdist.config.schema import run_schema
from lensdist.sim.config import LensLight, SimConfig
from lensdist.tasks.registry import built_in

# `pretrain.optim.lr=1e-4` must mean the phase: no phase may be called like a part of a setting.
TAKEN = {"runs", "cluster"}.union(*(run_schema(task).model_fields for task in built_in()))
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_REFERENCE = re.compile(r"\{([A-Za-z0-9_-]+)\}")
KINDS = ("train", "evaluate", "simulate", "pack", "report")


class Simulate(SimConfig):
    """A simulated set: the settings of `lensdist simulate`."""

    n_per_class: int = Field(ge=1, description="images of each class")
    seed: int = Field(0, ge=0, lt=2**63, description="of the images and of the splits")
    truth: bool = Field(False, description="pairs: also keep targets without their noise")

    @model_validator(mode="after")
    def _can_be_said_in_flags(self) -> Self:
        light = self.lens_light
        if light is not None and light != LensLight(magnitude=light.magnitude):
            raise ValueError("lens_light: only its magnitude can be set in a chain")
        return self

    def words(self) -> Iterator[str]:
        """The flags of `lensdist simulate`, without the destination."""
        yield from ("--n-per-class", str(self.n_per_class), "--seed", str(self.seed))
        if self.truth:
            yield "--truth"
        for name in SimConfig.model_fields:
            value = getattr(self, name)
            if name == "classes" and value is not None:
                yield from ("--classes", ",".join(value))
            elif name == "lens_light" and value is not None:
                yield from ("--lens-light-mag", str(value.magnitude))
            elif name == "family" or value != SimConfig.model_fields[name].default:
                yield from (f"--{name.replace('_', '-')}", str(value))

    def source(self) -> dict[str, object]:
        """What the set's manifest says of where it came from."""
        sim = {name: getattr(self, name) for name in SimConfig.model_fields}
        return {
            "simulated": SimConfig(**sim).model_dump(mode="json"),
            "n_per_class": self.n_per_class,
            "seed": self.seed,
        }


class Pack(Strict):
    """A set packed from files: the settings of `lensdist pack`."""

    src: Path = Field(description="folder of the files, relative to where you are")
    seed: int = Field(0, ge=0, description="of the splits")
    dtype: Literal["float32", "float16"] = Field("float32", description="float16 for 0..1 only")
    max_bad: float = Field(0.01, ge=0, le=1, description="fraction of bad files tolerated")
    layout: Literal["auto", "classes", "pairs", "images"] = Field("auto", description="of src")
    labels: tuple[str, ...] | None = Field(None, description="class folders, in label order")
    pixel_scale: float | None = Field(None, gt=0, description="arcsec a pixel")
    psf_fwhm: float | None = Field(None, gt=0, description="arcsec")
    zero_point: float | None = Field(None, description="magnitude of one image unit")

    def facts(self) -> dict[str, object]:
        """What the set's manifest says, as far as these settings decide it."""
        labels = {} if self.labels is None else {"labels": [*self.labels]}
        return {"seed": self.seed, "dtype": self.dtype, **labels}

    def words(self) -> Iterator[str]:
        """The flags of `lensdist pack`, without source and destination."""
        for name in type(self).model_fields:
            value = getattr(self, name)
            if name != "src" and value is not None:
                text = ",".join(value) if isinstance(value, tuple) else str(value)
                yield from (f"--{name.replace('_', '-')}", text)


class Phase(Strict):
    """One job: exactly one of `train`, `evaluate`, `simulate`, `pack`, `report`."""

    train: Path | None = Field(None, description="its configuration, relative to the chain's file")
    evaluate: str | None = Field(None, description="the phase whose run is scored")
    simulate: Simulate | None = Field(None, description="a set to simulate")
    pack: Pack | None = Field(None, description="a set to pack")
    report: tuple[str, ...] | None = Field(
        None, description="training phases to put into one table, once they are scored"
    )
    split: Literal["train", "val", "test"] = Field("test", description="what is scored")
    set: tuple[str, ...] = Field(
        (), description="key=value settings on top of the configuration; {phase} is a phase's run"
    )
    after: tuple[str, ...] = Field((), description="phases that must be complete before")
    walltime: int | None = Field(None, ge=1, description="minutes, instead of the cluster's")
    processes: int | None = Field(
        None, ge=1, description="at most so many, where the cluster would give more"
    )

    @model_validator(mode="after")
    def _one_thing(self) -> Self:
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(
                f"needs exactly one of {', '.join(KINDS)}; it has {' and '.join(given) or 'none'}"
            )
        if self.train is None and self.set:
            raise ValueError(f"`set` belongs to training; {given[0]} has settings of its own")
        return self

    @property
    def kind(self) -> str:
        """Which of `KINDS` it is."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)


class Chain(Strict):
    """Phases, each after those it needs."""

    name: str = Field(description="prefix of the jobs' names", pattern=r"^[A-Za-z0-9_.-]+$")
    runs: Path = Field(description="folder of the phases' runs, relative to where you are")
    phases: dict[str, Phase] = Field(min_length=1, description="by name, in order")

    def needs(self, name: str) -> tuple[str, ...]:
        """The phases that must be complete before one, in order, each once.

        What is put into a table must have been scored, where the chain scores it.
        """
        phase = self.phases[name]
        used = {*phase.after, *filter(None, [phase.evaluate]), *(phase.report or ())}
        for other, one in self.phases.items():
            if other == name:
                break
            if phase.report and one.evaluate in phase.report:
                used.add(other)
        return tuple(other for other in self.phases if other in used)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        wrong = []
        before: dict[str, Phase] = {}
        for name, phase in self.phases.items():
            if not _NAME.fullmatch(name) or name in TAKEN:
                wrong.append(f"phase {name!r}: is a setting's name, or no plain word; rename it")
            named = (*phase.after, *filter(None, [phase.evaluate]), *(phase.report or ()))
            # An earlier phase only: so no circle, and the file reads in the order of running.
            for other in named:
                if other not in before:
                    wrong.append(f"phase {name}: needs {other!r}, which is no phase before it")
            for other in {*_REFERENCE.findall(" ".join(phase.set))} - {*phase.after}:
                wrong.append(f"phase {name}: `set` names {{{other}}}, which `after` does not")
            for other in (*filter(None, [phase.evaluate]), *(phase.report or ())):
                if other in before and before[other].train is None:
                    wrong.append(f"phase {name}: {phase.kind}s {other}, which trains nothing")
            before[name] = phase
        if wrong:
            raise ValueError("; ".join(wrong))
        return self


def filled(setting: str, runs: Mapping[str, Path]) -> str:
    """A setting with each `{phase}` replaced by that phase's folder."""
    run_of: Callable[[re.Match[str]], str] = lambda m: str(runs[m[1]])  # noqa: E731
    return _REFERENCE.sub(run_of, setting)
