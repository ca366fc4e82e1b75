"""What is run, in which order: what `configs/chains/<name>.yaml` may say."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from lensdist.config.base import Strict
from lensdist.config.schema import TASKS

# `pretrain.optim.lr=1e-4` must mean the phase: no phase may be called like a part of a setting.
TAKEN = {"runs", "cluster"}.union(*(model.model_fields for model in TASKS.values()))
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_REFERENCE = re.compile(r"\{([A-Za-z0-9_-]+)\}")


class Phase(Strict):
    """One job: either the training of one run (`train`), or the scoring of one (`evaluate`)."""

    train: Path | None = Field(None, description="its configuration, relative to the chain's file")
    evaluate: str | None = Field(None, description="the phase whose run is scored")
    split: Literal["train", "val", "test"] = Field("test", description="what is scored")
    set: tuple[str, ...] = Field(
        (), description="key=value settings on top of the configuration; {phase} is a phase's run"
    )
    after: tuple[str, ...] = Field((), description="phases that must be complete before")
    walltime: int | None = Field(None, ge=1, description="minutes, instead of the cluster's")

    @model_validator(mode="after")
    def _one_thing(self) -> Self:
        if (self.train is None) == (self.evaluate is None):
            raise ValueError("needs either `train` (a configuration) or `evaluate` (a phase)")
        if self.evaluate is not None and self.set:
            raise ValueError("`set` belongs to training; what is evaluated has its settings")
        return self

    def needs(self) -> tuple[str, ...]:
        """The phases that must be complete before, in order, each once."""
        scored = (self.evaluate,) if self.evaluate else ()
        return tuple(dict.fromkeys((*self.after, *scored)))


class Chain(Strict):
    """Phases, each after those it needs."""

    name: str = Field(description="prefix of the jobs' names", pattern=r"^[A-Za-z0-9_.-]+$")
    runs: Path = Field(description="folder of the phases' runs, relative to where you are")
    phases: dict[str, Phase] = Field(min_length=1, description="by name, in order")

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        wrong = []
        before: dict[str, Phase] = {}
        for name, phase in self.phases.items():
            if not _NAME.fullmatch(name) or name in TAKEN:
                wrong.append(f"phase {name!r}: is a setting's name, or no plain word; rename it")
            # An earlier phase only: so no circle, and the file reads in the order of running.
            for other in phase.needs():
                if other not in before:
                    wrong.append(f"phase {name}: needs {other!r}, which is no phase before it")
            for other in {*_REFERENCE.findall(" ".join(phase.set))} - {*phase.after}:
                wrong.append(f"phase {name}: `set` names {{{other}}}, which `after` does not")
            if phase.evaluate in before and before[phase.evaluate].train is None:
                wrong.append(f"phase {name}: evaluates {phase.evaluate}, which trains nothing")
            before[name] = phase
        if wrong:
            raise ValueError("; ".join(wrong))
        return self


def filled(setting: str, runs: Mapping[str, Path]) -> str:
    """A setting with each `{phase}` replaced by that phase's run."""
    run_of: Callable[[re.Match[str]], str] = lambda m: str(runs[m[1]])  # noqa: E731
    return _REFERENCE.sub(run_of, setting)
