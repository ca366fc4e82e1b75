"""What became of a chain, from the files of its runs and SLURM's own word."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from lensdist.config import load
from lensdist.config.schema import ClassifierRun, schema_of
from lensdist.errors import UserError
from lensdist.track.log import read
from slurm.jobs import Goal
from slurm.plan import SUBMISSIONS, read_request
from slurm.sending import JOBS

HEADER = ("phase", "job", "state", "step", "last val", "complete")


def status(chain_file: Path, words: Sequence[str]) -> list[tuple[str, ...]]:
    """A row for each phase, as in `HEADER`.

    Settings other than `runs=` are not needed again, and not looked at: the runs have theirs.

    Raises:
        UserError: the chain is wrong, or has no phase of a name.
    """
    request = read_request(chain_file, words)
    ids = _newest_jobs(request.runs / SUBMISSIONS)
    states = slurm_states([ids[name] for name in request.phases if name in ids])
    goals = [request.goal(name) for name in request.phases]
    return [HEADER, *(_row(goal, ids.get(goal.phase), states) for goal in goals)]


def slurm_states(ids: list[str]) -> dict[str, str]:
    """SLURM's state of each job that it knows; none where there is no SLURM."""
    if not ids:
        return {}
    known = ",".join(ids)
    # sacct remembers finished jobs but lags some seconds behind; what squeue says is newer.
    asked = (
        ["sacct", "-n", "-X", "-P", "-o", "JobID,State", "-j", known],
        ["squeue", "-h", "-t", "all", "-o", "%i|%T", "-j", known],
    )
    states: dict[str, str] = {}
    for words in asked:
        if shutil.which(words[0]) is None:
            continue
        answer = subprocess.run(words, capture_output=True, text=True, check=False)
        for line in answer.stdout.splitlines():
            job, _, state = line.partition("|")
            if job in ids and state:
                states[job] = state.split()[0]  # "CANCELLED by 1000"
    return states


def _newest_jobs(submissions: Path) -> dict[str, str]:
    """The last job of each phase; submissions are named by their time."""
    found: dict[str, str] = {}
    for file in sorted(submissions.glob(f"*/{JOBS}")):
        found |= json.loads(file.read_text())
    return found


def _row(goal: Goal, job: str | None, states: dict[str, str]) -> tuple[str, ...]:
    try:
        complete = "yes" if goal.reached() else "no"
    except UserError:
        complete = "damaged"
    progress, score = ("-", "-") if goal.split else _progress(goal.run)
    return goal.phase, job or "-", states.get(job or "", "-"), progress, score, complete


def _progress(run: Path) -> tuple[str, str]:
    """`step/total`, and at the last validation the score that chooses the best checkpoint."""
    if not (run / "config.yaml").exists():
        return "-", "-"
    config = load(run / "config.yaml", schema=schema_of)
    rows = read(run / "metrics.jsonl")
    train, val = (
        next((row for row in reversed(rows) if row["kind"] == kind), {})
        for kind in ("train", "val")
    )
    steps = "-"
    if train:
        # The number of images is the data's; the run's own epoch says what it comes to.
        total = round(config.train.epochs * train["step"] / train["epoch"])
        steps = f"{train['step']}/{min(total, config.train.max_steps or total)}"
    chosen = config.select if isinstance(config, ClassifierRun) else "mse"
    name = {"auc": "auc_macro"}.get(chosen, chosen)
    value = val.get(name)
    return steps, f"{name} {value:.4g}" if isinstance(value, int | float) else "-"
