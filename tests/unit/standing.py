"""A chain as it lies on the disk after something has happened to it, and a SLURM of scripts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lensdist.utils.files import sha256, to_json, write_atomic
from lensdist.utils.outcome import Outcome
from slurm.attempts import AttemptLog
from slurm.job import Job, Target
from slurm.job_side.node_health import Report
from slurm.monitor.diagnose import why
from tests.unit.jobs import make_job

T0 = 1_700_000_000.0  # s


class Standing:
    """pretrain -> finetune -> evaluate, below a folder; nothing of it is sent yet.

    Args:
        folder: where runs, the launcher's folder and the commands of SLURM lie.
        patch: puts these commands, and no others, on PATH.
    """

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.runs = folder / "runs"
        self.state = self.runs / ".submit"
        self.pretrain = Target(phase="pretrain", run=self.runs / "pretrain")
        self.finetune = Target(phase="finetune", run=self.runs / "finetune")
        self.evaluate = Target(phase="evaluate", run=self.runs / "finetune", kind="scores")
        self.targets = [self.pretrain, self.finetune, self.evaluate]
        self._needs = {"pretrain": (), "finetune": (self.pretrain,), "evaluate": (self.finetune,)}
        self.state.mkdir(parents=True, mode=0o700)
        (self.state / "code").mkdir()
        self._bin = folder / "bin"
        self._bin.mkdir()
        patch.setenv("PATH", str(self._bin))

    def slurm(self, squeue: str = "", sacct: str = "", scontrol: str = "") -> None:
        """A SLURM that says this, whatever it is asked; `calls` has what squeue was asked."""
        says = {"squeue": squeue, "sacct": sacct, "scontrol": scontrol, "sbatch": ""}
        for name, text in says.items():
            tool = self._bin / name
            say = "".join(f"echo '{line}'\n" for line in text.splitlines())
            tool.write_text(f'#!/bin/sh\necho "{name} $*" >>{self._bin}/calls\n{say}')
            tool.chmod(0o755)

    def calls(self, name: str) -> int:
        """How often a command was called."""
        calls = self._bin / "calls"
        lines = calls.read_text().splitlines() if calls.exists() else []
        return sum(line.startswith(f"{name} ") for line in lines)

    def attempt_log(self, phase: str) -> AttemptLog:
        return AttemptLog(self.state / "ledger" / f"{phase}.jsonl")

    def sent(self, phase: str, job: str, submission: str = "first", **cluster: object) -> Job:
        """Send a phase: its file and its event."""
        argv = ("-m", "lensdist.train", "--config", str(self.state / submission / f"{phase}.yaml"))
        target = next(target for target in self.targets if target.phase == phase)
        more = {"needs": self._needs[phase], "argv": argv, "code": self.state / "code"}
        given = {"executor": "slurm"} | cluster
        found = make_job(target, self.state, submission, cluster=given, **more)
        self.attempt_log(phase).append("sent", job, submission, time=T0)
        return found

    def started(self, phase: str, job: str, attempt: int = 1, **more: object) -> None:
        """Begin an attempt, an hour after the last."""
        given = {"nodes": ("gpu07", "gpu08"), "time": T0 + 3600 * attempt, "attempt": attempt}
        self.attempt_log(phase).append("started", job, "first", **given | more)

    def ended(self, phase: str, job: str, verdict: str, reason: str, **more: object) -> None:
        """End it, eighteen minutes later."""
        attempt = more.get("attempt", 1)
        assert isinstance(attempt, int)
        given = {"kind": "crashed", "attempt": 1, "time": T0 + 3600 * attempt + 1080}
        given |= {"verdict": verdict, "reason": reason}
        self.attempt_log(phase).append("ended", job, "first", **given | more)

    def failed(
        self, verdict: str, reason: str, *, phase: str = "pretrain", job: str = "17", **more: object
    ) -> None:
        """Send a phase, start its first attempt, and end it."""
        self.sent(phase, job)
        self.started(phase, job)
        self.ended(phase, job, verdict, reason, **more)

    def unfit(self, problem: str, *, shared: bool = False) -> None:
        """Report gpu08 as unfit for the first attempt of `pretrain`."""
        report = Report(host="gpu08", node=1, problem=problem, shared=shared)
        write_atomic(self.attempt("pretrain") / "node-00001.json", report.model_dump_json())

    def page(self, phase: str = "pretrain", options: str = "") -> str:
        """Return the page of `why`; only its paths are longer than a line."""
        target = next(target for target in self.targets if target.phase == phase)
        page = why(target, self.state, self.targets, options=options)
        assert len(page.splitlines()) <= 40
        for line in page.splitlines():
            assert len(line) <= 100 or str(self.runs) in line, line
        return page

    def attempt(self, phase: str, number: int = 1) -> Path:
        """Where what is said in an attempt lies."""
        return self.state / "first" / "attempts" / f"{phase}-{number}"

    def word(
        self, phase: str, rank: int, host: str, error: str, attempt: int = 1, **more: object
    ) -> None:
        """What a process said at its end, one each second."""
        said = {"kind": "crashed", "rank": rank, "host": host, "error": error, "time": T0 + rank}
        word = Outcome.model_validate(said | more)
        write_atomic(self.attempt(phase, attempt) / f"rank-{rank:05d}.json", word.model_dump_json())

    def log(self, job: str, text: str, node: int = 0, submission: str = "first") -> Path:
        """Write a node's log."""
        file = self.state / submission / f"{job}_{node}_log.out"
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        file.write_text(text)
        return file

    def train(self, phase: str, step: int, rate: float = 100.0, **val: object) -> None:
        """What a run of 16 images a step and 10 steps an epoch, 20 epochs, has written."""
        run = self.runs / phase
        run.mkdir(parents=True, exist_ok=True)
        task = {"pretrain": "mae", "finetune": "finetune"}[phase]
        config = {
            "task": task,
            "run": {"dir": str(run)},
            "optim": {"lr": 3e-4},
            "data": {"path": "packed"},
        }
        config["train"] = {"epochs": 20, "global_batch": 16, "micro_batch": 8}
        (run / "config.yaml").write_text(json.dumps(config))
        rows = [
            {"step": s, "kind": "train", "epoch": s / 10, "images_per_s": rate}
            for s in range(2, step + 1, 2)
        ]
        rows += [{"step": step, "kind": "val", **val}] if val else []
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (run / "checkpoints" / f"step-{step:08d}").mkdir(parents=True, exist_ok=True)

    def complete(self, phase: str) -> None:
        """Mark a run complete."""
        run = self.runs / phase
        write_atomic(run / "export" / "model.safetensors", b"weights")
        files = {"export/model.safetensors": sha256(run / "export" / "model.safetensors")}
        write_atomic(run / "COMPLETE.json", to_json({"config": {}, "files": files}))


@pytest.fixture
def standing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Standing:
    """A chain of which nothing is sent, on a machine without SLURM."""
    return Standing(tmp_path, monkeypatch)
