"""Start trainings on the tests' SLURM: by the launcher, and by hand."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lensdist.config import load, save
from lensdist.config.schema import schema_of
from slurm.attempts import Event
from tests.chains import jobs_of, submit, write_chain, write_cluster
from tests.conftest import ROOT, settings
from tests.slurm.minislurm import MiniSlurm
from tests.slurm.watch import attempts_of, losses

CONFIGS = ROOT / "configs"
PATIENCE = 240  # s to wait for a step on a busy machine
LOOK = 0.02  # s between two checks of a run
ENDLESS = 100_000  # steps


def tiny(task: str, data: str, **changes: Any) -> list[str]:
    """Return settings of a network so small that only the work around it is visible."""
    words = settings(task, Path(data), Path("unused"), **changes)
    return [word for word in words if not word.startswith(("--config", "run.dir="))]


class Jobs:
    """Trainings of one configuration on the cluster, by the launcher and by hand.

    Args:
        cluster: the SLURM.
        folder: of all files; it must not exist.
        data: a packed set.
        where: settings of the cluster's file.
        changes: of the configuration.
    """

    def __init__(
        self, cluster: MiniSlurm, folder: Path, data: Path, where: dict[str, Any], **changes: Any
    ) -> None:
        folder.mkdir()
        self.slurm, self.folder, self.runs = cluster, folder, folder / "runs"
        self._data, self._count = data, 0
        self.config = folder / "tiny.yaml"
        words = [*tiny("mae", str(data), **changes, **{"train.log_every": 1}), "run.dir=unused"]
        save(load(CONFIGS / "mae" / "debug.yaml", words, schema=schema_of), self.config)
        stamp = f"date +%s.%N >> {folder}/$SLURM_JOB_ID.times"
        self.where = write_cluster(folder, executor="slurm", setup=[stamp], **where)
        self._head = f"#!/bin/bash\n#SBATCH --output={folder}/%j.log --chdir={ROOT}\n"
        self._stamp = f"{stamp}\n"

    def new(self) -> str:
        """Return a new name."""
        self._count += 1
        return f"run-{self._count}"

    def send(self, name: str) -> str:
        """Submit a job by the launcher, and return its id."""
        chain = write_chain(self.folder, self._data, phases={name: {"train": str(self.config)}})
        submit("submit", chain, self.where, env=self.slurm.environment)
        return jobs_of(self.runs)[name]

    def send_bare(self, head: str, body: str) -> str:
        """Submit a job by hand, and return its id."""
        file = self.folder / "bare.sh"
        file.write_text(f"{self._head}{head}{self._stamp}{body}")
        return self.slurm.run("sbatch", "--parsable", str(file)).strip()

    def times(self, job: str) -> list[float]:
        """Return the times of the stamps in its script."""
        return [float(line) for line in (self.folder / f"{job}.times").read_text().split()]

    def first_step(self, job: str, run: Path, after: int = 0) -> float:
        """Wait for a run's first step after `after`; return its time, in seconds since 1970."""
        return self.wait(lambda: max(losses(run), default=0) > after, job, f"step of {run}")

    def wait(self, done: Callable[[], bool], job: str, what: str) -> float:
        """Wait until `done`; return the time, in seconds since 1970.

        Raises:
            SystemExit: it does not happen; with the end of the job's log.
        """
        end = time.monotonic() + PATIENCE
        while not done():
            if time.monotonic() > end:
                known = self.slurm.job(job)
                log = Path(known["StdOut"])
                said = log.read_text(errors="replace") if log.exists() else "nothing"
                state = known["JobState"]
                raise SystemExit(f"no {what} within {PATIENCE} s; {state}, {log}:\n{said[-2000:]}")
            time.sleep(LOOK)
        return time.time()


class Starts(Jobs):
    """Jobs timed from the first line of the batch script to the first step."""

    def __init__(self, cluster: MiniSlurm, folder: Path, data: Path, nodes: int, each: int) -> None:
        where = {"nodes": nodes, "processes_per_node": each, "cpus_per_task": each}
        super().__init__(cluster, folder, data, where, **{"train.max_steps": 2})
        self._nodes, self._each = nodes, each
        self._loss: float | None = None

    def ours(self) -> float:
        """Time a job that the launcher sends."""
        name = self.new()
        return self._seconds(self.send(name), self.runs / name)

    def bare(self) -> float:
        """Time a job that is written by hand."""
        run = self.folder / self.new()
        words = f"-m lensdist.train --config {self.config} run.dir={run}"
        line = f"{sys.executable} {words}"
        prepare = "export ACCELERATE_USE_CPU=true OMP_NUM_THREADS=1\n"
        if self._nodes * self._each > 1:
            prepare += 'export HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)\n'
            prepare += "export PORT=$((10000 + SLURM_JOB_ID % 20000))\n"
            line = (
                f"bash -c '{sys.executable} -m accelerate.commands.launch --multi_gpu "
                f"--config_file accelerate_config.yaml --num_machines {self._nodes} "
                f"--num_processes {self._nodes * self._each} --machine_rank $SLURM_NODEID "
                f"--main_process_ip $HEAD --main_process_port $PORT {words}'"
            )
        size = f"--ntasks-per-node=1 --cpus-per-task={self._each}"
        body = f"{prepare}srun --cpus-per-task={self._each} {line}\n"
        return self._seconds(self.send_bare(f"#SBATCH --nodes={self._nodes} {size}\n", body), run)

    def _seconds(self, job: str, run: Path) -> float:
        """Wait for the first step and the job's end, which frees the cores; return the seconds."""
        seen = self.first_step(job, run)
        state = self.slurm.finished(job, PATIENCE)
        loss = losses(run)[1]
        if self._loss is None:
            self._loss = loss
        if state != "COMPLETED" or not math.isclose(loss, self._loss, rel_tol=1e-6):
            raise SystemExit(f"{run}: {state}, loss {loss}, not {self._loss}: not the same work")
        return seen - self.times(job)[0]


class Again(Jobs):
    """Jobs timed from their end to the first step after a requeue."""

    def __init__(self, cluster: MiniSlurm, folder: Path, data: Path) -> None:
        changes = {"train.max_steps": ENDLESS, "train.epochs": ENDLESS}
        changes |= {"train.eval_every_epochs": ENDLESS, "checkpoint.every_epochs": ENDLESS}
        super().__init__(cluster, folder, data, {"cpus_per_task": 1}, **changes)

    def ours(self) -> float:
        """Time a job that is told to stop after its first steps, as before a time limit."""
        name = self.new()
        job, run = self.send(name), self.runs / name
        self.first_step(job, run)
        self.slurm.run("scancel", "--signal=USR2", job)
        self.wait(lambda: self._ended(name) is not None, job, f"end of {name}")
        ended = self._ended(name)
        assert ended is not None
        if ended.verdict != "requeue":
            raise SystemExit(f"{name} was not queued again: {ended.reason}")
        seen = self.first_step(job, run, ended.step)
        self.slurm.run("scancel", job)
        self.slurm.finished(job, PATIENCE)
        return seen - ended.time

    def bare(self) -> float:
        """Time SLURM's own delay."""
        # With a step before: SLURM takes longer to clear up after a job that had one.
        again = f"srun true; {self._stamp.strip()}; scontrol requeue $SLURM_JOB_ID"
        body = f'[ -n "$SLURM_RESTART_COUNT" ] || {{ {again}; }}\n'
        job = self.send_bare("#SBATCH --requeue\n", body)
        path = self.folder / f"{job}.times"
        self.wait(lambda: path.exists() and len(self.times(job)) == 3, job, f"restart of {job}")
        self.slurm.finished(job, PATIENCE)
        _, queued, running = self.times(job)
        return running - queued

    def _ended(self, name: str) -> Event | None:
        found = attempts_of(self.runs, name)
        return found[0].ended if found else None
