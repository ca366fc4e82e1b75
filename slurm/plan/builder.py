"""Build the plan: the steps of a chain's phases, at each point of a sweep."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from lensdist.config.compose import composed
from lensdist.config.schema import BaseRun
from lensdist.data.epoch_size import images_per_epoch
from lensdist.runs.accelerate_launch import (
    adopt,
    conflicts,
    from_environment,
    from_file,
    not_installed,
)
from lensdist.runs.fit import Fitted, fitted, planned
from lensdist.utils.errors import UserError
from slurm import ROOT
from slurm.config.chain import Phase, filled
from slurm.config.cluster import Cluster
from slurm.config.request import (
    Request,
    phase_names,
    read_cluster,
    read_request,
    unused_settings,
)
from slurm.config.resources import cluster_of
from slurm.config.source import Source, train_file
from slurm.config.sweep import SWEEP, Point, points
from slurm.job import Target, hours_file
from slurm.plan.outdated import TRIGGERS, Existing, Trigger, of_run, of_scores, of_set
from slurm.plan.plan import Plan, Step, shared_evenly

T = TypeVar("T")


def make_plan(
    source: Source | Path,
    cluster_file: Path,
    arguments: Sequence[str],
    sweeps: Sequence[str] = (),
    triggers: Sequence[Trigger] = TRIGGERS,
) -> Plan:
    """Check everything, and work out what runs where.

    Args:
        source: the chain's source, or its file.
        arguments: names of phases (none: all) and settings.
        triggers: changes that make a finished phase run again.

    Raises:
        UserError: all errors, one a line.
    """
    errors = [
        f"{name} is a point of a sweep: name the phase, and give --sweep"
        for name in phase_names(arguments)
        if "@" in name
    ]
    request = _tried(lambda: read_request(source, arguments), errors)
    cluster = _tried(lambda: read_cluster(cluster_file, arguments), errors)
    combined = _tried(lambda: points(sweeps), errors) or []
    if request is not None:
        swept_settings = [s for point in combined for s in point.settings]
        errors += dict.fromkeys(unused_settings(request.chain, swept_settings))
    if request is None or cluster is None or errors:
        raise UserError("\n".join(errors))
    folder = (Source(source) if isinstance(source, Path) else source).folder
    return _Builder(request, folder, cluster_file, cluster, triggers).plan(combined)


def _tried(read: Callable[[], T], errors: list[str]) -> T | None:
    try:
        return read()
    except UserError as e:
        errors.append(str(e))
    return None


class _Builder:
    """The builder of steps, phase after phase in the chain's order."""

    def __init__(
        self,
        request: Request,
        folder: Path,
        cluster_file: Path,
        cluster: Cluster,
        triggers: Sequence[Trigger],
    ) -> None:
        self._request, self._chain, self._state = request, request.chain, request.state
        self._folder_of_chain, self._cluster_file, self._cluster = folder, cluster_file, cluster
        self._triggers = triggers
        own = ROOT / "accelerate_config.yaml"
        self._accelerate = [from_file(own)] if own.exists() else []  # a clone has the file
        self._steps: dict[str, dict[Point | None, Step]] = {}
        self._clusters: dict[str, Cluster] = {}
        # The same at each point of a sweep.
        self._environment = functools.cache(
            lambda env: from_environment({**os.environ, **dict(env)})
        )
        self._short = functools.cache(_short)
        self._base = functools.cache(composed)

    def plan(self, combined: Sequence[Point]) -> Plan:
        """Return the plan of the request, at all points of a sweep.

        Raises:
            UserError: all errors, one a line.
        """
        errors: list[str] = []
        swept = self._swept(combined)
        for name in self._chain.phases:
            self._steps[name] = {}
            for point in combined if name in swept else [None]:
                try:
                    step = self._build(name, point)
                    if step is not None:
                        self._steps[name][point] = step
                except UserError as e:
                    errors += [f"{name}: {one}" for one in str(e).splitlines()]
        if errors:
            raise UserError("\n".join(dict.fromkeys(errors)))
        chosen = [step for name in self._request.phases for step in self._steps[name].values()]
        chosen += self._sweep_table(chosen)
        request = self._request
        return Plan(request.chain, self._cluster, request.runs, self._state, tuple(chosen))

    def _swept(self, combined: Sequence[Point]) -> set[str]:
        """Return the phases that a sweep changes, directly or through a phase that they need."""
        phases, swept = self._chain.phases, set[str]()
        if not combined:
            return swept
        firsts = {s.partition("=")[0].split(".")[0] for point in combined for s in point.settings}
        everywhere = bool(firsts - set(phases))
        for name, phase in phases.items():
            direct = name in firsts or (everywhere and phase.train is not None)
            if direct or swept & set(self._chain.needs(name)):
                swept.add(name)
        # A table of the chain covers all points.
        return {name for name in swept if phases[name].report is None}

    def _build(self, name: str, point: Point | None) -> Step | None:
        """Return a phase's step at a point; None if an earlier phase could not be built.

        Raises:
            UserError: all errors in it, one a line.
        """
        phase = self._chain.phases[name]
        earlier: list[Step] = []
        lacking = False
        for other in self._chain.needs(name):
            every = self._steps[other]
            at = every if phase.report else dict.fromkeys((None, point))
            those = [every[one] for one in at if one in every]
            lacking |= not those
            earlier += those
        if lacking and phase.train is None:
            return None
        build = self._other if phase.train is None else self._training
        step = build(name, point, earlier)
        if lacking:
            return None  # the earlier phase's errors are reported; this one's would be, too
        needs = tuple(one.target for one in earlier)
        return replace(step, needs=needs, existing=self._after(earlier, step.existing))

    def _after(self, earlier: Sequence[Step], existing: Existing) -> Existing:
        """Return what exists of a phase, now that the phases that it needs are known."""
        if existing.state not in ("done", "begun"):
            return existing
        again = [f"{s.name} runs again" for s in earlier if s.existing.state == "again"]
        if existing.state == "done" and "data" in self._triggers:
            # It was made from files that are gone, and may differ when they are made again.
            again += [
                f"{s.name} is not complete"
                for s in earlier
                if s.target.kind in ("run", "set") and s.existing.state in ("new", "begun")
            ]
        return Existing("again", tuple(again)) if again else existing

    def _training(self, name: str, point: Point | None, earlier: Sequence[Step]) -> Step:
        cluster = self._cluster_of(name)
        config, by_data = self._config(name, point, earlier)
        counts = shared_evenly(config, cluster)
        config = self._agreed(config, cluster, counts)
        settings = config.model_dump(mode="json") if "config" in self._triggers else None
        target = Target(phase=_name(name, point), run=config.run.dir, settings=settings)
        existing = of_run(target, config, self._state, self._triggers)
        source = " ".join(("train", str(self._short(self._config_file(name))), *by_data))
        return Step(
            name, target, source, cluster, existing, config=config, counts=counts, point=point
        )

    def _cluster_of(self, name: str) -> Cluster:
        if name not in self._clusters:
            phase, given = self._chain.phases[name], self._request.cluster
            own = self._request.resources.get(name, ())
            self._clusters[name] = cluster_of(name, phase, self._cluster_file, given, own)
        return self._clusters[name]

    def _config(self, name: str, point: Point | None, earlier: Sequence[Step]) -> Fitted:
        """Return the configuration of a phase, and what data and encoder decide of it."""
        phase = self._chain.phases[name]
        runs = {other: self._folder(other, None) for other in phase.after}
        runs |= {step.phase: step.target.run for step in earlier}
        own = [filled(setting, runs) for setting in phase.set]
        # First the chain's settings, then those of the command line, then the point's.
        for setting in (*self._request.settings, *(point.settings if point else ())):
            first = setting.partition("=")[0].split(".")[0]
            if first == name:
                own.append(setting.removeprefix(f"{name}."))
            elif first not in self._chain.phases:
                own.append(setting)
        for setting in own:
            if setting.partition("=")[0].strip() == "run.dir":
                raise UserError(f"{setting}: the chain sets every run's folder; set runs=FOLDER")
        own.append(f"run.dir={self._folder(name, point)}")
        file = self._config_file(name)
        made = {step.target.run: step.config for step in earlier if step.config is not None}
        return fitted(self._base(file) or file, own, planned(made))

    def _config_file(self, name: str) -> Path:
        train = self._chain.phases[name].train
        assert train is not None
        return train_file(self._folder_of_chain, train)

    def _agreed(self, config: BaseRun, cluster: Cluster, counts: Sequence[int]) -> BaseRun:
        """Return the configuration with what accelerate's file and the environment set.

        Raises:
            UserError: they contradict the run.
        """
        asked = [*self._accelerate, self._environment(tuple(cluster.env.items()))]
        processes = counts[0] * cluster.per_node if len(counts) == 1 else None
        asked = [replace(settings, processes=processes) for settings in asked]
        for settings in asked:
            config = adopt(config, settings)
        errors = [one for settings in asked for one in conflicts(config, settings)]
        if cluster.python is None and not cluster.container:
            errors += not_installed(config)
        errors += _warmup(config)
        if config.precision == "fp16" and cluster.on_cpu:
            errors.append("precision: fp16 needs a GPU, and the cluster has gpus_per_node: null")
        if errors:
            raise UserError("\n".join(errors))
        return config

    def _other(self, name: str, point: Point | None, earlier: Sequence[Step]) -> Step:
        """Return the step of a phase that trains nothing; it runs in one process."""
        phase, cluster = self._chain.phases[name], self._cluster_of(name)
        folder = self._folder(name, point)
        argv: tuple[str, ...]
        if phase.evaluate is not None:
            trained = next(step for step in earlier if step.phase == phase.evaluate)
            assert trained.config is not None  # the chain was checked
            run = trained.target.run
            target = Target(phase=_name(name, point), run=run, kind="scores", split=phase.split)
            data = trained.config.data.path or run / "data"
            own = trained.config.programs()
            trusted = [word for path in own for word in ("--trust", path.partition(":")[0])]
            argv = ("evaluate", str(run), "--data", str(data), "--split", phase.split, *trusted)
            existing = of_scores(target, trained.existing, self._state, self._triggers)
            source = f"evaluate {trained.name} on its {phase.split} split"
        elif phase.report is not None:
            target = Target(phase=name, run=folder, kind="table")
            runs = [str(step.target.run) for step in earlier if step.target.kind == "run"]
            argv = ("report", *runs, "--title", self._chain.name, *self._written(target))
            existing = _of_table(target, earlier)
            source = f"table of {len(runs)} runs"
        elif phase.simulate is not None:
            target = Target(phase=name, run=folder, kind="set")
            argv = ("simulate", *phase.simulate.flags(), str(folder))
            existing = of_set(target, {"source": phase.simulate.source()}, self._triggers)
            source = f"simulate {phase.simulate.n_per_class:,} {phase.simulate.family} a class"
        else:
            assert phase.pack is not None
            target = Target(phase=name, run=folder, kind="set")
            src = phase.pack.src.absolute()
            argv = ("pack", *phase.pack.flags(), str(src), str(folder))
            existing = of_set(target, phase.pack.manifest(), self._triggers)
            source = f"pack {_short(src)}"
        argv = ("-m", "lensdist", *argv)
        return Step(name, target, source, cluster, existing, argv=argv, point=point)

    def _sweep_table(self, steps: Sequence[Step]) -> list[Step]:
        """Return the step that compares a sweep's points when all have ended."""
        swept = [step for step in steps if step.point is not None]
        scored = {step.target.run for step in swept if step.target.kind == "scores"}
        trained = (step.target.run for step in swept if step.target.kind == "run")
        runs = [str(run) for run in trained if not scored or run in scored]
        if not runs:
            return []
        digest = hashlib.sha256("\n".join(runs).encode()).hexdigest()[:6]
        name = f"{SWEEP}{digest}"
        target = Target(phase=name, run=self._request.runs / name, kind="table")
        return [
            Step(
                "sweep",
                target,
                f"table of {len(runs)} runs",
                cluster_of(name, Phase(report=()), self._cluster_file, self._request.cluster, ()),
                _of_table(target, swept),
                follows=tuple(step.name for step in swept),
                argv=("-m", "lensdist", "report", *runs, "--partial", *self._written(target)),
            )
        ]

    def _written(self, table: Target) -> tuple[str, ...]:
        """Return where a table is written, and the file of hours that its prologue writes."""
        return "--out", str(table.run), "--used", str(hours_file(self._state, table.phase))

    def _folder(self, name: str, point: Point | None) -> Path:
        return self._request.runs / _name(name, point)


def _warmup(config: BaseRun) -> list[str]:
    """Return the error of a warm-up longer than the run, if the number of images is known."""
    try:
        samples = images_per_epoch(config.data, config.run.dir)
        steps = config.train.max_steps
        if steps is None and samples is not None:
            steps = config.train.epochs * (samples // config.train.global_batch)
        if steps:
            config.optim.schedule.check_warmup(steps)
    except UserError as e:
        return [str(e)]
    return []


def _of_table(target: Target, steps: Sequence[Step]) -> Existing:
    return Existing("done" if all(s.done for s in steps) and target.reached() else "new")


def _name(name: str, point: Point | None) -> str:
    return name if point is None else f"{name}@{point.label}"


def _short(path: Path) -> Path:
    path = path.resolve()
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
