"""The steps of a plan: what each phase of a chain comes to, at each point of a sweep."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lensdist.config import load
from lensdist.config.schema import BaseRun, schema_of
from lensdist.engine.launcher import (
    adopt,
    conflicts,
    from_environment,
    from_file,
    not_installed,
)
from lensdist.errors import UserError
from slurm.config.chain import filled
from slurm.config.cluster import Cluster
from slurm.config.request import Request, read_cluster
from slurm.config.sweep import Point
from slurm.job import Goal
from slurm.plan.outdated import Standing, Trigger, of_run, of_scores, of_set
from slurm.plan.step import Step, shared_evenly

SWEEP = "sweep"


class Maker:
    """Makes steps, phase after phase in the chain's order.

    Args:
        request: what is asked for.
        chain_file: configurations are relative to it.
        cluster_file: where it runs; phases may have a walltime of their own.
        cluster: the same, read.
        root: the clone.
        state: name of the launcher's folder.
        triggers: what makes a finished phase run again when it has changed.
    """

    def __init__(
        self,
        request: Request,
        chain_file: Path,
        cluster_file: Path,
        cluster: Cluster,
        root: Path,
        state: str,
        triggers: Sequence[Trigger],
    ) -> None:
        self._request = request
        self._chain_file = chain_file
        self._cluster_file = cluster_file
        self._cluster = cluster
        self._root = root
        self._state = request.runs / state
        self._triggers = triggers

    def make(
        self, name: str, point: Point | None, before: Mapping[str, Sequence[Step]]
    ) -> list[Step]:
        """A phase at a point, as a list of one; of none, where an earlier phase could not be made.

        Raises:
            UserError: all that is wrong with it.
        """
        phase = self._request.chain.phases[name]
        earlier: list[Step] = []
        lacking = False
        for other in self._request.chain.needs(name):
            those = [
                step
                for step in before[other]
                if phase.report or step.point is None or step.point == point
            ]
            lacking |= not those
            earlier += those
        needs = tuple(step.goal for step in earlier)
        cluster = self._cluster_of(name)
        config: BaseRun | None = None
        words: tuple[str, ...] | None = None
        counts: tuple[int, ...] = (1,)
        if phase.train is not None:
            config = self._config(name, point, earlier)
            counts = shared_evenly(config, cluster)
            config = self._agreed(config, cluster, counts)
            if lacking:
                return []  # whose mistakes have been told; this one's are, too
            goal = Goal(
                phase=self._name(name, point),
                run=self._folder(name, point),
                settings=config.model_dump(mode="json") if "config" in self._triggers else None,
            )
            standing = of_run(goal, config, self._state, self._package, self._triggers)
            source = f"train {_short(self._chain_file.parent / phase.train)}"
        else:
            if lacking:
                return []
            cluster = cluster.at_most(1)
            goal, words, source, standing = self._other(name, point, earlier)
        standing = self._after(earlier, standing)
        return [
            Step(name, goal, needs, (), source, config, words, cluster, counts, standing, point)
        ]

    def _after(self, earlier: Sequence[Step], standing: Standing) -> Standing:
        """How a phase stands, once it is known how those that it is made from do."""
        if standing.state not in ("done", "begun"):
            return standing
        again = [f"{s.name} runs again" for s in earlier if s.standing.state == "again"]
        if standing.state == "done" and "data" in self._triggers:
            # It was made from what is not there any more, and may come out otherwise.
            again += [f"{s.name} is not complete" for s in earlier if s.made_anew]
        return Standing("again", tuple(again)) if again else standing

    def sweep_table(self, steps: Sequence[Step]) -> list[Step]:
        """The table of a sweep, made when all its points have ended, well or not."""
        swept = [step for step in steps if step.point is not None]
        scored = {step.goal.run for step in swept if step.goal.kind == "scores"}
        runs = [
            step.goal.run
            for step in swept
            if step.goal.kind == "run" and (not scored or step.goal.run in scored)
        ]
        if not runs:
            return []
        digest = hashlib.sha256("\n".join(map(str, runs)).encode()).hexdigest()[:6]
        goal = Goal(
            phase=f"{SWEEP}-{digest}", run=self._request.runs / f"{SWEEP}-{digest}", kind="table"
        )
        words = ("-m", "lensdist", "report", *map(str, runs), "--partial", "--out", str(goal.run))
        done = all(step.done for step in swept) and goal.reached()
        return [
            Step(
                SWEEP,
                goal,
                (),
                tuple(step.goal for step in swept),
                f"table of {len(runs)} runs",
                None,
                words,
                self._cluster.at_most(1),
                (1,),
                Standing("done" if done else "new"),
            )
        ]

    @property
    def _package(self) -> Path:
        return self._root / "lensdist"

    def _name(self, name: str, point: Point | None) -> str:
        return name if point is None else f"{name}@{point.label}"

    def _folder(self, name: str, point: Point | None) -> Path:
        return self._request.runs / self._name(name, point)

    def _cluster_of(self, name: str) -> Cluster:
        phase, cluster = self._request.chain.phases[name], self._cluster
        if phase.walltime is not None:
            given = [f"cluster.{setting}" for setting in self._request.cluster]
            cluster = read_cluster(self._cluster_file, given, f"walltime={phase.walltime}")
        return cluster if phase.processes is None else cluster.at_most(phase.processes)

    def _config(self, name: str, point: Point | None, earlier: Sequence[Step]) -> BaseRun:
        phase = self._request.chain.phases[name]
        assert phase.train is not None
        runs = {other: self._folder(other, None) for other in phase.after}
        runs |= {step.phase: step.goal.run for step in earlier}
        own = [filled(setting, runs) for setting in phase.set]
        # The chain's settings, then those of the command line that concern it, then the point's.
        for setting in (*self._request.settings, *(point.settings if point else ())):
            first = setting.partition("=")[0].split(".")[0]
            if first == name:
                own.append(setting.removeprefix(f"{name}."))
            elif first not in self._request.chain.phases:
                own.append(setting)
        for setting in own:
            if setting.partition("=")[0].strip() == "run.dir":
                raise UserError(
                    f"{setting}: the chain gives every phase its folder; set runs=FOLDER"
                )
        file = self._chain_file.parent / phase.train
        return load(file, [*own, f"run.dir={self._folder(name, point)}"], schema=schema_of)

    def _agreed(self, config: BaseRun, cluster: Cluster, counts: Sequence[int]) -> BaseRun:
        """One truth for engine, processes, precision and batch, told before the queue.

        Raises:
            UserError: accelerate's file or the environment say otherwise than the run.
        """
        asked = [
            from_file(self._root / "accelerate_config.yaml"),
            from_environment({**os.environ, **cluster.env}),
        ]
        processes = counts[0] * cluster.per_node if len(counts) == 1 else None
        asked = [replace(settings, processes=processes) for settings in asked]
        for settings in asked:
            config = adopt(config, settings)
        told = [one for settings in asked for one in conflicts(config, settings)]
        if cluster.python is None and not cluster.container:
            told += not_installed(config)
        if config.precision == "fp16" and cluster.on_cpu:
            told.append("precision: fp16 needs a GPU, and the cluster has gpus_per_node: null")
        if told:
            raise UserError("\n".join(told))
        return config

    def _other(
        self, name: str, point: Point | None, earlier: Sequence[Step]
    ) -> tuple[Goal, tuple[str, ...], str, Standing]:
        """Goal, words, source and standing of what trains nothing."""
        phase = self._request.chain.phases[name]
        folder = self._folder(name, point)
        words: tuple[str, ...]
        if phase.evaluate is not None:
            trained = next(step for step in earlier if step.phase == phase.evaluate)
            assert trained.config is not None  # the chain has checked
            run = trained.goal.run
            goal = Goal(phase=self._name(name, point), run=run, kind="scores", split=phase.split)
            data = trained.config.data.path or run / "data"
            split = ("--split", phase.split)
            words = ("-m", "lensdist", "evaluate", str(run), "--data", str(data), *split)
            standing = of_scores(goal, trained.standing, self._state, self._package, self._triggers)
            source = f"evaluate {trained.name} on its {phase.split} split"
            return goal, words, source, standing
        if phase.report is not None:
            goal = Goal(phase=name, run=folder, kind="table")
            runs = [step.goal.run for step in earlier if step.goal.kind == "run"]
            out = ("--title", self._request.chain.name, "--out", str(folder))
            words = ("-m", "lensdist", "report", *map(str, runs), *out)
            done = all(step.done for step in earlier) and goal.reached()
            standing = Standing("done" if done else "new")
            return goal, words, f"table of {len(runs)} runs", standing
        goal = Goal(phase=name, run=folder, kind="set")
        if phase.simulate is not None:
            what = phase.simulate
            standing = of_set(goal, {"source": what.source()}, self._triggers)
            words = ("-m", "lensdist", "simulate", *what.words(), str(folder))
            return goal, words, f"simulate {what.n_per_class:,} {what.family} a class", standing
        assert phase.pack is not None
        src = phase.pack.src.absolute()
        words = ("-m", "lensdist", "pack", *phase.pack.words(), str(src), str(folder))
        return goal, words, f"pack {_short(src)}", of_set(goal, phase.pack.facts(), self._triggers)


def _short(path: Path) -> Path:
    path = path.resolve()
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
