"""Plans and tables as text."""

from __future__ import annotations

from collections.abc import Sequence

from slurm.cluster import Cluster
from slurm.jobs import Place, line
from slurm.plan import Plan, Step
from slurm.sending import batch_script

# What is known on the node only.
_ON_NODE = Place("$SLURM_NODEID", "$HEAD_NODE", "$PORT_OF_JOB")


def shown(plan: Plan) -> str:
    """The chain, each phase, and for SLURM the batch scripts.

    These are what sbatch will be given but for the submission's folder (`NEW`) and the ids of
    other jobs (`JOB_OF_…`), which do not exist yet.
    """
    parts = [f"chain {plan.chain.name}: {_arrows(plan)}", *(_phase(plan, s) for s in plan.steps)]
    if plan.cluster.executor == "slurm":
        parts += [_script(plan, step) for step in plan.steps if not step.done]
    return "\n\n".join(parts)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows in aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)) for r in rows)
    return "\n".join(one.rstrip() for one in lines)


def _arrows(plan: Plan) -> str:
    needs = {step.name: [need.phase for need in step.needs] for step in plan.steps}
    edges = [f"{before} -> {name}" for name, all_ in needs.items() for before in all_]
    alone = [n for n in needs if not any(n in edge.split(" -> ") for edge in edges)]
    return ", ".join([*alone, *edges])


def _phase(plan: Plan, step: Step) -> str:
    cluster, job = step.cluster, step.job(plan.submissions / "NEW")
    place = _ON_NODE if cluster.executor == "slurm" else Place(port="$FREE_PORT")
    rows = [
        ("state", "complete already, will be skipped" if step.done else "to do"),
        ("run", str(step.goal.run)),
        ("after", ", ".join(f"{n.phase} ({n.marker().name})" for n in step.needs) or "nothing"),
        ("on", _where(cluster)),
    ]
    if step.config is not None:
        batch, micro = step.config.train.global_batch, step.config.train.micro
        rows.append(("step", f"{batch} images = {batch // micro} micro-batches of {micro}"))
    rows.append(("command", line(job, place)))
    return "\n".join([f"{step.name}: {step.source}", *(f"  {k:<8} {v}" for k, v in rows)])


def _where(cluster: Cluster) -> str:
    kind = "on CPU" if cluster.on_cpu else "on a GPU each" if cluster.gpus_per_node else ""
    hours, minutes = divmod(cluster.walltime, 60)
    shape = f"{cluster.nodes} node(s) x {cluster.per_node} process(es) {kind}".strip()
    return f"{cluster.executor}, {shape}, at most {hours}:{minutes:02d} h"


def _script(plan: Plan, step: Step) -> str:
    ahead = {s.name for s in plan.steps if not s.done}
    after = [f"JOB_OF_{need.phase}" for need in step.needs if need.phase in ahead]
    folder = plan.submissions / "NEW"
    text = batch_script(plan.chain.name, step.job(folder), folder, after)
    return f"---- batch script of {step.name}\n{text.rstrip()}"
