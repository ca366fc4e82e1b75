"""A real SLURM answers the launcher's questions, and the fake one answers them alike."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from lensdist.utils.errors import RunError
from slurm import scheduler
from tests.fakes.slurm import FakeSlurm
from tests.slurm.minislurm import MiniSlurm

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]

ROWS = "squeue -h -a -r -t all -o %i|%T|%r|%N"
SCRIPTS = {
    "runs": "#SBATCH --job-name=runs --output=/dev/null\nsleep 100\n",
    "over": "#SBATCH --job-name=over --output=/dev/null\nexit 3\n",
    "waits": "#SBATCH --job-name=waits --hold\n",
    "array": "#SBATCH --job-name=array --hold --array=0-3\n",
}
COMMANDS = [
    f"{ROWS} -j WAITS,RUNS,OVER,ARRAY",
    f"{ROWS.replace(' -t all', '')} -j OVER",
    f"{ROWS} -j ARRAY_1",
    f"{ROWS} -j ARRAY_7",
    f"{ROWS} -j RUNS,999999",
    f"{ROWS} -j 999998,999999",
    f"{ROWS} -j 999999",
    f"{ROWS} -j x",
    "squeue -h -o %L -j WAITS",
    "squeue -h -o %L -j OVER",
    "squeue -h -o %L -j 999999",
    "sacct -n -X -P -o JobID,State -j RUNS",
    "sacct -o JobID,State,NodeList --parsable2 -j RUNS",
    "scontrol -o show job 999999",
    "scontrol -o show job x",
    "scontrol -o show job ARRAY_7",
    "scontrol show hostnames gpu[07-08,11],x1,127.0.0.[9-10]",
    "scontrol show hostnames a[3-1]",
    "scontrol requeue 999999",
    "scontrol requeue WAITS",
    "scontrol requeue ARRAY",
    "scontrol requeue ARRAY_1",
    "scontrol update JobId=WAITS ExcNodeList=127.0.0.1 StartTime=now+2",
    "scontrol update JobId=RUNS ExcNodeList=127.0.0.1 StartTime=now+2",
    "scontrol update JobId=OVER ExcNodeList=127.0.0.1 StartTime=now+2",
    "scontrol update JobId=999999 StartTime=now+2",
    "scontrol update JobId=RUNS Comment=hello",
    "squeue -h -o %k -j RUNS",
    "squeue -h -o %k -j OVER",
    "scancel 999999",
    "scancel OVER",
    "scancel x",
    "scancel",
    "scancel ARRAY_1",
    f"{ROWS} -j ARRAY",
    "scontrol -o show job ARRAY_1",
    "scancel ARRAY WAITS",
    f"{ROWS} -j ARRAY,WAITS",
    "sbatch nothing.sh",
    "sbatch no_script.sh",
    "sbatch --test-only runs.sh",
]
FIELDS = (
    *("JobId", "JobName", "JobState", "Reason", "Dependency", "Requeue", "Restarts"),
    *("ExitCode", "Partition", "ExcNodeList", "NodeList"),
)


class Side:
    """One of the two: the jobs of `SCRIPTS`, and answers in which their ids are names."""

    def __init__(self, environment: dict[str, str], folder: Path) -> None:
        self.env = {**os.environ, **environment}
        self.folder = folder
        for name, text in SCRIPTS.items():
            (folder / f"{name}.sh").write_text(f"#!/bin/bash\n{text}")
        (folder / "no_script.sh").write_text("exit\n")
        self.ids = {name: self.run(f"sbatch {name}.sh").stdout.split()[-1] for name in SCRIPTS}

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        words = command.split()
        words[0] = shutil.which(words[0], path=self.env["PATH"]) or words[0]
        return subprocess.run(
            words, env=self.env, cwd=self.folder, capture_output=True, text=True, check=False
        )

    def answer(self, command: str) -> tuple[int, list[str], str]:
        for name, job in self.ids.items():
            command = command.replace(name.upper(), job)
        done = self.run(command)
        lines = sorted(self._named(done.stdout).splitlines())  # the order of jobs is the queue's
        return done.returncode, lines, self._named(done.stderr)

    def _named(self, text: str) -> str:
        for name, job in self.ids.items():
            text = text.replace(job, name.upper())
        text = re.sub(r"Job \d+ to start at [\d:T-]+", "Job N to start at T", text)
        return re.sub(r"on nodes \S+", "on nodes X", text)

    def details(self, name: str) -> list[tuple[str, str]]:
        said = self.run(f"scontrol -o show job {self.ids[name]}").stdout
        values = dict(re.findall(r"(\S+?)=(\S*)", said))
        return [(key, self._named(values[key])) for key in FIELDS]


def test_the_fake_slurm_answers_as_the_real_one_does(cluster: MiniSlurm, tmp_path: Path) -> None:
    fake = FakeSlurm(tmp_path, accounting=False)
    sides = []
    for name, environment in {"real": cluster.environment, "fake": fake.environment}.items():
        (tmp_path / name).mkdir()
        sides.append(Side(environment, tmp_path / name))
    real, played = sides
    cluster.wait_state(real.ids["runs"], ["RUNNING"], 20)
    cluster.wait_state(real.ids["over"], ["FAILED"], 20)
    node = cluster.job(real.ids["runs"])["NodeList"]
    over = cluster.job(real.ids["over"])["NodeList"]
    fake.set(played.ids["runs"], state="RUNNING", nodes=node)
    fake.set(played.ids["over"], state="FAILED", reason="NonZeroExitCode", exit_code="3:0")
    fake.set(played.ids["over"], nodes=over)
    for name in fake.jobs:
        if name.startswith((played.ids["waits"], played.ids["array"])):
            fake.set(name, reason="JobHeldUser")

    for name in ("runs", "over", "waits"):
        assert played.details(name) == real.details(name)
    for command in COMMANDS:
        assert played.answer(command) == real.answer(command), command


def test_a_requeued_job_moves(
    cluster: MiniSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in cluster.environment.items():
        monkeypatch.setenv(key, value)
    job = cluster.run("sbatch", "--parsable", "--output=/dev/null", "--wrap=sleep 100").strip()
    cluster.wait_state(job, ["RUNNING"], 20)
    now = scheduler.states([job, "1"])
    assert list(now) == [job]
    assert (now[job].state, now[job].active, now[job].stuck) == ("RUNNING", True, False)
    left = scheduler.seconds_left(job)
    assert left is not None
    assert 500 < left <= 600
    first = scheduler.hostnames(now[job].nodes)
    assert scheduler.details(job)["BatchHost"] == first[0]
    assert scheduler.details("1") == {}

    scheduler.requeue(job)
    scheduler.change(job, exclude=first, delay=2)
    assert scheduler.details(job)["ExcNodeList"] == first[0]
    cluster.wait_state(job, ["PENDING"], 20)
    cluster.wait_state(job, ["RUNNING"], 30)
    assert scheduler.hostnames(scheduler.states([job])[job].nodes) != first
    assert scheduler.details(job)["Restarts"] == "1"

    scheduler.cancel([job, "1"])
    assert cluster.finished(job, 20) == "CANCELLED"
    assert not scheduler.states([job])[job].active
    with pytest.raises(RunError, match="Job has already finished"):
        scheduler.tell("scontrol", "update", f"JobId={job}", "StartTime=now+1")
