"""A chain on a cluster, checked and worked out before anything is written or sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from lensdist.config import load
from lensdist.config.schema import BaseRun, schema_of
from lensdist.engine.batches import plan_steps
from lensdist.engine.differences import differences
from lensdist.errors import UserError
from lensdist.phases import completed
from slurm.chain import Chain, filled
from slurm.cluster import Cluster
from slurm.jobs import Goal, Job

SUBMISSIONS = ".submit"


@dataclass(frozen=True)
class Step:
    """A phase of the chain, ready to become a job."""

    goal: Goal
    needs: tuple[Goal, ...]
    source: str
    """What it does, to show: `train configs/mae/debug.yaml`."""
    config: BaseRun | None
    """The run's whole configuration; None for an evaluation."""
    data: Path | None
    """What an evaluation scores on."""
    cluster: Cluster
    done: bool

    @property
    def name(self) -> str:
        return self.goal.phase

    def job(self, submission: Path) -> Job:
        """The job, whose files lie in `submission`."""
        if self.config is not None:
            # The resolved configuration: what is edited while the job waits does not change it.
            words = ["-m", "lensdist.train", "--config", str(submission / f"{self.name}.yaml")]
        else:
            words = ["-m", "lensdist", "evaluate", str(self.goal.run), "--data", str(self.data)]
            words += ["--split", str(self.goal.split)]
        return Job(
            goal=self.goal,
            needs=self.needs,
            words=tuple(words),
            cluster=self.cluster,
            cwd=Path.cwd(),
        )


@dataclass(frozen=True)
class Plan:
    """The phases asked for, in order."""

    chain: Chain
    cluster: Cluster
    runs: Path
    steps: tuple[Step, ...]

    @property
    def submissions(self) -> Path:
        """Where what is sent is kept."""
        return self.runs / SUBMISSIONS


@dataclass(frozen=True)
class Request:
    """What stands on the command line beside the two files.

    Attributes:
        chain: the chain, its `runs` replaced by `runs=FOLDER`.
        phases: those named, in the chain's order; all, where none is.
        cluster: `cluster.key=value`, as `key=value`.
        settings: `key=value` for every training phase, `PHASE.key=value` for one.
    """

    chain: Chain
    phases: tuple[str, ...]
    cluster: tuple[str, ...]
    settings: tuple[str, ...]

    @property
    def runs(self) -> Path:
        return self.chain.runs.absolute()

    def goal(self, name: str) -> Goal:
        """What a phase of the chain is to leave behind."""
        phase = self.chain.phases[name]
        if phase.evaluate is not None:
            return Goal(phase=name, run=self.runs / phase.evaluate, split=phase.split)
        return Goal(phase=name, run=self.runs / name)


def read_request(chain_file: Path, words: Sequence[str]) -> Request:
    """Read the chain, and sort the words.

    Raises:
        UserError: the chain is wrong, or has no phase of a name.
    """
    names = [w for w in words if "=" not in w]
    settings = [w for w in words if "=" in w]
    runs = [s for s in settings if s.startswith("runs=")]
    cluster = [s for s in settings if s.startswith("cluster.")]
    chain = load(chain_file, runs, schema=Chain)
    errors = []
    for name in names:
        if name not in chain.phases:
            near = get_close_matches(name, chain.phases, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(chain.phases)}"
            errors.append(f"{chain_file} has no phase {name!r}; {hint}")
    if errors:
        raise UserError("\n".join(errors))
    return Request(
        chain,
        tuple(name for name in chain.phases if not names or name in names),
        tuple(s.removeprefix("cluster.") for s in cluster),
        tuple(s for s in settings if s not in runs and s not in cluster),
    )


def make_plan(chain_file: Path, cluster_file: Path, words: Sequence[str]) -> Plan:
    """Check everything, and work out what runs where.

    Args:
        chain_file: `configs/chains/….yaml`.
        cluster_file: `configs/clusters/….yaml`.
        words: names of phases (none: all) and settings, as `Request` has them.

    Raises:
        UserError: all that is wrong, a line each.
    """
    errors: list[str] = []
    request = cluster = None
    try:
        request = read_request(chain_file, words)
    except UserError as e:
        errors.append(str(e))
    try:
        given = [w.removeprefix("cluster.") for w in words if w.startswith("cluster.")]
        cluster = load(cluster_file, given, schema=Cluster)
    except UserError as e:
        errors.append(str(e))
    if request is None or cluster is None:
        raise UserError("\n".join(errors))
    steps: dict[str, Step] = {}
    for name, phase in request.chain.phases.items():
        try:
            mine = cluster
            if phase.walltime is not None:
                changed = [*request.cluster, f"walltime={phase.walltime}"]
                mine = load(cluster_file, changed, schema=Cluster)
            if phase.evaluate is None:
                steps[name] = _training(name, request, chain_file, mine)
            elif phase.evaluate in steps:  # else the training's own errors say enough
                steps[name] = _evaluation(name, request, steps[phase.evaluate], mine)
        except UserError as e:
            errors += [f"{name}: {one}" for one in str(e).splitlines()]
    if errors:
        raise UserError("\n".join(errors))
    return Plan(request.chain, cluster, request.runs, tuple(steps[n] for n in request.phases))


def _training(name: str, request: Request, chain_file: Path, cluster: Cluster) -> Step:
    phase, goal = request.chain.phases[name], request.goal(name)
    assert phase.train is not None
    file = chain_file.parent / phase.train
    settings = _settings_of(name, request)
    config = load(file, [*settings, f"run.dir={goal.run}"], schema=schema_of)
    # The size of the data is the run's business; here only who shares what is looked at.
    batch = config.train.global_batch
    plan_steps(batch, config.train.micro, batch, 0, cluster.world)
    needs = tuple(request.goal(other) for other in phase.needs())
    what = f"train {_short(file)}"
    return Step(goal, needs, what, config, None, cluster, _done(goal.run, config))


def _evaluation(name: str, request: Request, trained: Step, cluster: Cluster) -> Step:
    phase, goal = request.chain.phases[name], request.goal(name)
    assert trained.config is not None  # the chain has checked
    needs = tuple(request.goal(other) for other in phase.needs())
    what = f"evaluate {trained.name} on its {phase.split} split"
    data = trained.config.data.path or goal.run / "data"
    done = trained.done and goal.reached()
    return Step(goal, needs, what, None, data, cluster.alone(), done)


def _settings_of(name: str, request: Request) -> list[str]:
    """The chain's settings of a phase, then those of the command line that concern it."""
    phases = request.chain.phases
    runs = {other: request.goal(other).run for other in phases}
    own = [filled(setting, runs) for setting in phases[name].set]
    for setting in request.settings:
        first = setting.partition("=")[0].split(".")[0]
        if first == name:
            own.append(setting.removeprefix(f"{name}."))
        elif first not in phases:
            own.append(setting)
    for setting in own:
        if setting.partition("=")[0].strip() == "run.dir":
            raise UserError(f"{setting}: the chain gives every phase its folder; set runs=FOLDER")
    return own


def _done(run: Path, config: BaseRun) -> bool:
    """Whether the run is finished, with these settings.

    Raises:
        UserError: it is finished with others.
    """
    record = completed(run)
    if record is None:
        return False
    changed = differences(record["config"], config.model_dump(mode="json"))
    if changed:
        raise UserError(
            f"{run} was completed with other settings ({'; '.join(changed)}); put them back, "
            "or give another runs=FOLDER"
        )
    return True


def _short(path: Path) -> Path:
    path = path.resolve()
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
