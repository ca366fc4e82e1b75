"""The settings of a chain: which phases run, in which order (`configs/chains/<name>.yaml`)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from lensdist.config.schema import BaseRun
from lensdist.sim.config import LensLight, SimConfig
from lensdist.tasks.registry import built_in
from lensdist.utils.settings import Strict
from slurm.config.walltime import Minutes

# `pretrain.optim.lr=1e-4` must mean the phase: no phase may be called like a part of a setting.
TAKEN = {"runs", "cluster", *BaseRun.model_fields}.union(
    *(task.settings.model_fields for task in built_in().values())
)
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_REFERENCE = re.compile(r"\{([A-Za-z0-9_-]+)\}")
KINDS = ("train", "evaluate", "simulate", "pack", "report")


class Simulate(SimConfig):
    """A simulated set: the settings of `lensdist simulate`."""

    n_per_class: int = Field(ge=1, description="images per class")
    seed: int = Field(0, ge=0, lt=2**63, description="seed of the images and splits")
    truth: bool = Field(False, description="pairs: also store targets without noise")

    @model_validator(mode="after")
    def _fits_the_command_line(self) -> Self:
        light = self.lens_light
        if light is not None and light != LensLight(magnitude=light.magnitude):
            raise ValueError("lens_light: only its magnitude can be set in a chain")
        return self

    def flags(self) -> Iterator[str]:
        """Yield the flags of `lensdist simulate`, without the destination."""
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
        """Return the source that the set's manifest must have."""
        sim = {name: getattr(self, name) for name in SimConfig.model_fields}
        return {
            "simulated": SimConfig(**sim).model_dump(mode="json"),
            "n_per_class": self.n_per_class,
            "seed": self.seed,
        }


class Pack(Strict):
    """A set packed from files: the settings of `lensdist pack`."""

    src: Path = Field(description="folder of the files, relative to the current folder")
    seed: int = Field(0, ge=0, description="seed of the splits")
    dtype: Literal["float32", "float16"] = Field("float32", description="float16 for 0..1 only")
    max_bad: float = Field(0.01, ge=0, le=1, description="largest fraction of unreadable files")
    layout: Literal["auto", "classes", "pairs", "images"] = Field(
        "auto", description="layout of src"
    )
    labels: tuple[str, ...] | None = Field(None, description="class folders, in label order")
    pixel_scale: float | None = Field(None, gt=0, description="arcsec per pixel")
    psf_fwhm: float | None = Field(None, gt=0, description="seeing, arcsec")
    zero_point: float | None = Field(None, description="magnitude of a flux of 1")

    def manifest(self) -> dict[str, object]:
        """Return the entries of the set's manifest that these settings decide."""
        labels = {} if self.labels is None else {"labels": [*self.labels]}
        return {"seed": self.seed, "dtype": self.dtype, **labels}

    def flags(self) -> Iterator[str]:
        """Yield the flags of `lensdist pack`, without source and destination."""
        for name in type(self).model_fields:
            value = getattr(self, name)
            if name != "src" and value is not None:
                text = ",".join(value) if isinstance(value, tuple) else str(value)
                yield from (f"--{name.replace('_', '-')}", text)


class Phase(Strict):
    """One job: exactly one of `train`, `evaluate`, `simulate`, `pack` and `report`."""

    train: Path | None = Field(
        None, description="configuration: a file, relative to the chain's, or a preset"
    )
    evaluate: str | None = Field(None, description="phase whose run is evaluated")
    simulate: Simulate | None = Field(None, description="settings of a set to simulate")
    pack: Pack | None = Field(None, description="settings of a set to pack")
    report: tuple[str, ...] | None = Field(
        None, description="training phases to compare in one table, after their evaluation"
    )
    split: Literal["train", "val", "test"] = Field("test", description="split to evaluate")
    set: tuple[str, ...] = Field(
        (),
        description="key=value settings of the training; {phase} is a phase's run folder",
    )
    after: tuple[str, ...] = Field((), description="phases that must be complete first")
    walltime: Minutes | None = Field(None, description="time limit, in place of the cluster's")
    cluster: dict[str, Any] = Field(
        {}, description="keys of the cluster for this phase: {partition: cpu, gpus_per_node: 1}"
    )
    together: bool = Field(
        False, description="share one job of SLURM with the phases beside it that say so, too"
    )
    processes: int | None = Field(
        None, ge=1, description="largest number of processes, if the cluster gives more"
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
        """The one of `KINDS` that is set."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)


class Chain(Strict):
    """Phases, each after the phases that it needs."""

    name: str = Field(description="prefix of the jobs' names", pattern=r"^[A-Za-z0-9_.-]+$")
    runs: Path = Field(description="folder of the runs, relative to the current folder")
    phases: dict[str, Phase] = Field(min_length=1, description="the phases by name, in order")

    def needs(self, name: str) -> tuple[str, ...]:
        """Return the phases that must be complete before this one, in order.

        A table also needs the evaluations of its runs.
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
                wrong.append(
                    f"phase {name!r}: rename it: letters, digits, - and _, and not a setting's name"
                )
            named = (*phase.after, *filter(None, [phase.evaluate]), *(phase.report or ()))
            # Only an earlier phase: no cycles, and the file is read in the order of running.
            for other in named:
                if other not in before:
                    wrong.append(f"phase {name}: needs {other!r}, which is not an earlier phase")
            for other in {*_REFERENCE.findall(" ".join(phase.set))} - {*phase.after}:
                wrong.append(f"phase {name}: `set` uses {{{other}}}; add it to `after`")
            for other in (*filter(None, [phase.evaluate]), *(phase.report or ())):
                if other in before and before[other].train is None:
                    wrong.append(f"phase {name}: {other} must be a phase with `train`")
            before[name] = phase
        if wrong:
            raise ValueError("; ".join(wrong))
        return self


def filled(setting: str, runs: Mapping[str, Path]) -> str:
    """Return a setting with each `{phase}` replaced by that phase's folder."""
    run_of: Callable[[re.Match[str]], str] = lambda m: str(runs[m[1]])  # noqa: E731
    return _REFERENCE.sub(run_of, setting)
