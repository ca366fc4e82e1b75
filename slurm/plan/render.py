"""A plan as text: each phase, how long it takes, and the batch scripts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from lensdist.config.schema import BaseRun
from lensdist.data.epoch_size import images_per_epoch
from lensdist.estimate.network import prepare
from lensdist.sim.config import SimConfig
from slurm import scheduler
from slurm.config.cluster import Cluster
from slurm.job import Job
from slurm.job_side.command import Place, shown_command
from slurm.plan.estimate import Estimate, estimate, total
from slurm.plan.estimate import line as time_line
from slurm.plan.plan import Plan, Step
from slurm.plan.sbatch import batch_script, batches

_SHARDED = {
    1: "the optimizer's state",
    2: "the optimizer's state and gradients",
    3: "the optimizer's state, gradients and parameters",
}


def render_plan(plan: Plan) -> str:
    """Return the chain, each phase and, for SLURM, the batch scripts.

    The scripts are those for sbatch, with placeholders for what does not exist yet: the
    submission's folder (`NEW`), the copy of the code (`CODE`) and ids of other jobs (`JOB_OF_…`).
    """
    times = _times(plan)
    parts = [f"chain {plan.chain.name}: {_arrows(plan)}"]
    for phase, group in groupby(plan.steps, key=lambda step: step.phase):
        first, *others = group
        parts.append(_phase(plan, first, times.get(first.name)))
        if others:  # the points of a sweep, which differ in what their names say
            alike = [f"  {step.name}: {step.existing.text}" for step in others]
            parts.append("\n".join([f"{phase}: the same at {len(others)} more points", *alike]))
    if times:
        parts.append(total(times))
    if plan.cluster.executor == "slurm":
        for name, text in batch_scripts(plan).items():
            parts.append(f"---- batch script of {name}\n{text.rstrip()}")
    return "\n\n".join(parts)


def batch_scripts(plan: Plan) -> dict[str, str]:
    """Return the batch script of each job, or job array, that would be sent."""
    jobs = {step.name: _job(step, plan) for step in plan.todo}
    ids, found = dict[str, str](), dict[str, str]()
    largest = scheduler.largest_array() if plan.arrays else None
    for script, names, after in batches(jobs, plan.arrays, ids, largest):
        tasks = len(names) if len(names) > 1 else 0
        first = jobs[names[0]]
        if first.together:
            found[script] = batch_script(first, after, shared=[jobs[name] for name in names])
            ids |= dict.fromkeys(names, f"JOB_OF_{script}")
            continue
        found[script] = batch_script(first, after, script if tasks else None, tasks)
        for task, name in enumerate(names):
            ids[name] = f"JOB_OF_{script}_{task}" if tasks else f"JOB_OF_{script}"
    return found


def _job(step: Step, plan: Plan) -> Job:
    return plan.job(step, plan.state / "NEW", plan.state / "code" / "CODE", {})


def _arrows(plan: Plan) -> str:
    edges = [f"{need.phase} -> {step.name}" for step in plan.steps for need in step.needs]
    linked = {name for edge in edges for name in edge.split(" -> ")}
    return ", ".join([*(s.name for s in plan.steps if s.name not in linked), *edges])


def _times(plan: Plan) -> dict[str, Estimate | None]:
    """Estimate the time of each training phase that is to be submitted."""
    like = [step.target.run for step in plan.steps if step.target.kind == "run"]
    found: dict[str, tuple[Step, BaseRun, int | None]] = {}
    for step in plan.todo:
        if step.config is not None:
            made = _as_simulated(step.config, plan)
            samples = next(
                (n for c in (step.config, made) if (n := images_per_epoch(c.data, c.run.dir))), None
            )
            found[step.name] = step, step.config, samples
    # In one process, which takes seconds to start.
    prepare([c for s, c, n in found.values() if n and (s.cluster.hardware or s.cluster.tflops)])
    return {
        name: estimate(config, step.target.run, samples, step.cluster, like)
        for name, (step, config, samples) in found.items()
    }


def _as_simulated(config: BaseRun, plan: Plan) -> BaseRun:
    """Return the configuration with the images that a phase of the chain will simulate."""
    for name, phase in plan.chain.phases.items():
        if phase.simulate is not None and config.data.path == plan.runs / name:
            sim = SimConfig(**{key: getattr(phase.simulate, key) for key in SimConfig.model_fields})
            more = {"path": None, "sim": sim, "n_per_class": phase.simulate.n_per_class}
            return config.model_copy(update={"data": config.data.model_copy(update=more)})
    return config


def _phase(plan: Plan, step: Step, time: Estimate | None) -> str:
    cluster = step.cluster
    place = Place(port="$FREE_PORT")
    if cluster.executor == "slurm":
        place = Place("$SLURM_NODEID", cluster.fewest, "$HEAD_NODE", "$PORT_OF_JOB")
    needs = ", ".join(f"{n.phase} ({n.marker().name})" for n in step.needs)
    rows = [
        ("state", step.existing.text),
        ("makes", str(step.target.marker())),
        ("after", needs or "nothing"),
        ("on", _where(cluster, step.counts)),
    ]
    if others := [name for name in plan.together.get(step.name, ()) if name != step.name]:
        rows.append(("together", f"in one job with {', '.join(others)}"))
    if step.config is not None:
        rows.append(("step", _step(step.config, cluster, step.counts)))
        if step.config.engine != "ddp":
            rows.append(("engine", _engine(step.config)))
        if not step.done:
            unknown = "unknown: no data here yet, or no speed (cluster.hardware, or a first run)"
            rows.append(("time", time_line(time, cluster) if time else unknown))
    rows.append(("command", shown_command(_job(step, plan), place)))
    return "\n".join([f"{step.name}: {step.source}", *(f"  {k:<8} {v}" for k, v in rows)])


def _step(config: BaseRun, cluster: Cluster, counts: Sequence[int]) -> str:
    batch, found = config.train.global_batch, []
    for count in counts:
        micro = config.train.micro(count * cluster.per_node)
        found.append(f"{batch // micro} micro-batches of {micro}")
    return f"{batch} images = {' or '.join(dict.fromkeys(found))}"


def _engine(config: BaseRun) -> str:
    shard = config.shard
    where = ", in the machine's memory" if shard.offload else ""
    return f"{config.engine}, stage {shard.stage}: {_SHARDED[shard.stage]} sharded{where}"


def _where(cluster: Cluster, counts: Sequence[int]) -> str:
    kind = "on CPU" if cluster.on_cpu else "on a GPU each" if cluster.gpus_per_node else ""
    hours, minutes = divmod(cluster.walltime, 60)
    nodes = str(cluster.nodes) if len(counts) == 1 else " or ".join(map(str, counts))
    shape = f"{nodes} node(s) x {cluster.per_node} process(es) {kind}".strip()
    return f"{cluster.executor}, {shape}, at most {hours}:{minutes:02d} h a job"
