"""Plans and tables as text."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from lensdist.config.schema import BaseRun
from lensdist.data.samples import samples_of
from lensdist.sim.config import SimConfig
from slurm.config.cluster import Cluster
from slurm.job import Job
from slurm.job_side.command import Place, line
from slurm.plan.estimate import Estimate, estimate, total
from slurm.plan.estimate import line as time_line
from slurm.plan.plan import Plan
from slurm.plan.sbatch import batch_script
from slurm.plan.step import Step

_DIVIDED = {
    1: "the optimizer's state",
    2: "the optimizer's state and gradients",
    3: "the optimizer's state, gradients and parameters",
}


def shown(plan: Plan) -> str:
    """The chain, each phase, and for SLURM the batch scripts.

    These are what sbatch will be given but for the submission's folder (`NEW`), the code's copy
    (`CODE`) and the ids of other jobs (`JOB_OF_…`), which do not exist yet.
    """
    times = {step.name: _time(step, plan) for step in plan.steps if step.config is not None}
    parts = [f"chain {plan.chain.name}: {_arrows(plan)}"]
    parts += [_phase(plan, step, times.get(step.name)) for step in plan.steps]
    todo = {s.name: times[s.name] for s in plan.todo if s.name in times}
    if todo:
        parts.append(total(todo))
    if plan.cluster.executor == "slurm":
        parts += [f"---- batch script of {n}\n{text.rstrip()}" for n, text in scripts(plan).items()]
    return "\n\n".join(parts)


def scripts(plan: Plan) -> dict[str, str]:
    """The batch script of each job (of a sweep: of each array) that would be sent."""
    ahead = {s.name for s in plan.todo}
    found = {}
    for (phase, swept), group in groupby(plan.todo, key=lambda s: (s.phase, s.point is not None)):
        steps = [*group]
        array = phase if swept and len(steps) > 1 else None
        after = [f"afterok:JOB_OF_{n.phase}" for n in steps[0].needs if n.phase in ahead]
        if array is not None:
            after = [
                f"aftercorr:JOB_OF_{n.phase.partition('@')[0]}" if "@" in n.phase else after[i]
                for i, n in enumerate(n for n in steps[0].needs if n.phase in ahead)
            ]
        ends = dict.fromkeys(g.phase.partition("@")[0] for g in steps[0].follows)
        after += [f"afterany:JOB_OF_{name}" for name in ends]
        text = batch_script(_job(steps[0], plan), after, array)
        if array is not None:
            flag = f"#SBATCH --array=0-{len(steps) - 1}%{len(steps)}\n"
            text = text.replace("# Parameters\n", f"# Parameters\n{flag}").replace("%j", "%A_%a")
        found[array or steps[0].name] = text
    return found


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows in aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)) for r in rows)
    return "\n".join(one.rstrip() for one in lines)


def _job(step: Step, plan: Plan) -> Job:
    folder, code = plan.state / "NEW", plan.state / "code" / "CODE"
    return step.job(plan.chain.name, plan.state, folder, code, {})


def _arrows(plan: Plan) -> str:
    needs = {step.name: [need.phase for need in step.needs] for step in plan.steps}
    edges = [f"{before} -> {name}" for name, all_ in needs.items() for before in all_]
    alone = [n for n in needs if not any(n in edge.split(" -> ") for edge in edges)]
    return ", ".join([*alone, *edges])


def _time(step: Step, plan: Plan) -> Estimate | None:
    assert step.config is not None
    like = [other.goal.run for other in plan.steps if other.goal.kind == "run"]
    samples = samples_of(step.config)
    if samples is None:
        samples = samples_of(_as_simulated(step.config, plan))
    return estimate(step.config, step.goal.run, samples, step.cluster, like)


def _as_simulated(config: BaseRun, plan: Plan) -> BaseRun:
    """With the images that a phase of the chain will have simulated, where it trains on those."""
    for name, phase in plan.chain.phases.items():
        if phase.simulate is not None and config.data.path == plan.runs / name:
            sim = SimConfig(**{key: getattr(phase.simulate, key) for key in SimConfig.model_fields})
            more = {"path": None, "sim": sim, "n_per_class": phase.simulate.n_per_class}
            return config.model_copy(update={"data": config.data.model_copy(update=more)})
    return config


def _phase(plan: Plan, step: Step, time: Estimate | None) -> str:
    cluster, count = step.cluster, step.cluster.fewest
    place = (
        Place("$SLURM_NODEID", count, "$HEAD_NODE", "$PORT_OF_JOB")
        if cluster.executor == "slurm"
        else Place(port="$FREE_PORT")
    )
    rows = [
        ("state", step.standing.sentence),
        ("makes", str(step.goal.marker())),
        ("after", ", ".join(f"{n.phase} ({n.marker().name})" for n in step.needs) or "nothing"),
        ("on", _where(cluster, step.counts)),
    ]
    if step.config is not None:
        rows.append(("step", _step(step.config, cluster, step.counts)))
        if step.config.engine != "ddp":
            rows.append(("engine", _engine(step.config)))
        if not step.done:
            known = "not known: no data here yet, or no speed (cluster.hardware, or a first run)"
            rows.append(("time", time_line(time, cluster) if time else known))
    rows.append(("command", line(_job(step, plan), place)))
    return "\n".join([f"{step.name}: {step.source}", *(f"  {k:<8} {v}" for k, v in rows)])


def _step(config: BaseRun, cluster: Cluster, counts: Sequence[int]) -> str:
    batch, found = config.train.global_batch, []
    for processes in [count * cluster.per_node for count in counts]:
        micro = config.train.micro(processes)
        found.append(f"{batch // micro} micro-batches of {micro}")
    return f"{batch} images = {' or '.join(dict.fromkeys(found))}"


def _engine(config: BaseRun) -> str:
    shard = config.shard
    where = ", in the machine's memory" if shard.offload else ""
    return f"{config.engine}, stage {shard.stage}: {_DIVIDED[shard.stage]} divided{where}"


def _where(cluster: Cluster, counts: Sequence[int]) -> str:
    kind = "on CPU" if cluster.on_cpu else "on a GPU each" if cluster.gpus_per_node else ""
    hours, minutes = divmod(cluster.walltime, 60)
    nodes = str(cluster.nodes) if len(counts) == 1 else " or ".join(map(str, counts))
    shape = f"{nodes} node(s) x {cluster.per_node} process(es) {kind}".strip()
    return f"{cluster.executor}, {shape}, at most {hours}:{minutes:02d} h a job"
