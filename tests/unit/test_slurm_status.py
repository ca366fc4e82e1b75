"""How a chain stands: SLURM's word, else the attempt log's, and how far each run is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from slurm.job import Target, hours_file
from slurm.job_side.prologue import start_attempt
from slurm.monitor.hours import used_by_runs
from slurm.monitor.progress import progress
from slurm.monitor.status import HEADER, as_json, query, table_rows, total_used
from tests.unit.jobs import make_job
from tests.unit.standing import T0, Standing, standing

pytestmark = pytest.mark.unit
__all__ = ["standing"]


def _rows(chain: Standing) -> dict[str, dict[str, str]]:
    header, *rows = table_rows(as_json(chain.targets, chain.state))
    assert header == HEADER
    return {row[0]: dict(zip(HEADER, row, strict=True)) for row in rows}


def test_a_chain_under_way_is_seen_with_one_question(standing: Standing) -> None:
    standing.slurm(squeue="17|RUNNING|None|gpu[07-08]|N/A\n18_2|PENDING|Dependency||N/A")
    standing.sent("pretrain", "17")
    standing.started("pretrain", "17")
    # 16 images a step at 2 a second; of 100 more steps, a validation of 30 s after each 10
    standing.train("pretrain", 100, rate=2.0, mse=0.02154, seconds=30.0)
    standing.sent("finetune", "18_2")
    rows = _rows(standing)
    assert rows["pretrain"].pop("used").endswith(" node-h")
    assert rows["pretrain"] == {
        "phase": "pretrain",
        "job": "17",
        "state": "RUNNING",
        "attempts": "1",
        "progress": "100/200",
        "ETA": "18 min",
        "last val": "mse 0.02154",
        "complete": "no",
    }
    assert rows["finetune"]["state"] == "PENDING (Dependency)"
    assert [*rows["evaluate"].values()] == ["evaluate", *["-"] * 7, "no"]
    assert standing.calls("squeue") == 1


def test_what_has_ended_has_no_time_left_and_says_if_it_is_damaged(standing: Standing) -> None:
    standing.slurm(sacct="17|COMPLETED|None|gpu07|0:0")
    standing.sent("pretrain", "17")
    standing.started("pretrain", "17")
    standing.train("pretrain", 200, mse=0.01)
    standing.complete("pretrain")
    row = _rows(standing)["pretrain"]
    assert [row[k] for k in ("state", "ETA", "complete")] == ["COMPLETED", "-", "yes"]
    (standing.runs / "pretrain" / "export" / "model.safetensors").write_bytes(b"other")
    assert _rows(standing)["pretrain"]["complete"] == "damaged"


_STOPPED = "/data/packed is not a packed set; make one with pack"


@pytest.mark.parametrize(
    ("end", "state"),
    [
        (None, "lost?"),
        (("requeue", "it fell"), "lost?"),
        (("stop", _STOPPED), "stopped: /data/packed is not a packed set; make…"),
        (("done", "complete"), "done"),
    ],
)
def test_states_without_slurm(end: tuple[str, str] | None, state: str, standing: Standing) -> None:
    standing.slurm()
    standing.sent("pretrain", "17")
    assert _rows(standing)["pretrain"]["state"] == "gone"
    standing.started("pretrain", "17")
    if end:
        standing.ended("pretrain", "17", *end)
    assert _rows(standing)["pretrain"]["state"] == state
    standing.attempt_log("pretrain").append("cancelled", "17", "first")
    assert _rows(standing)["pretrain"]["state"] == "cancelled"


@pytest.mark.parametrize("reason", ["None", "NonZeroExitCode"])
def test_a_failed_job_says_what_the_ledger_knows(standing: Standing, reason: str) -> None:
    standing.slurm(sacct=f"17|FAILED|{reason}|gpu07|1:0\n18|FAILED|None||1:0")
    standing.failed("stop", _STOPPED)
    standing.sent("finetune", "18")
    rows = _rows(standing)
    assert rows["pretrain"]["state"] == "FAILED: /data/packed is not a packed set; make…"
    assert rows["finetune"]["state"] == "FAILED"


def test_without_slurm_nobody_knows_whether_a_job_runs(standing: Standing) -> None:
    standing.sent("pretrain", "17")
    assert _rows(standing)["pretrain"]["state"] == "sent"
    standing.started("pretrain", "17")
    assert _rows(standing)["pretrain"]["state"] == "running?"
    standing.ended("pretrain", "17", "leave", "SLURM has requeued it itself")
    assert query(standing.targets, standing.state)[0].live is None
    standing.ended("pretrain", "17", "stop", "it fell")
    assert query(standing.targets, standing.state)[0].failed


def test_a_process_here_runs_while_it_lives_and_slurm_is_not_asked(standing: Standing) -> None:
    # Another's job in SLURM may have the number of the process.
    code = "import sys; print(flush=True); sys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", code, "submit.py"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdout.readline()
    standing.slurm(squeue=f"{process.pid}|PENDING|Priority||N/A")
    standing.started("pretrain", "1")  # the launcher's number: a process is sent after the start
    standing.sent("pretrain", str(process.pid), executor="local")
    standing.train("pretrain", 40)
    row = _rows(standing)["pretrain"]
    assert (row["state"], row["ETA"]) == ("running", "26 s")
    process.stdin.close()
    process.wait(timeout=200)
    process.stdout.close()
    row = _rows(standing)["pretrain"]
    assert (row["state"], row["ETA"]) == ("lost?", "-")
    assert standing.calls("squeue") == 0


def test_the_newest_sending_counts_whatever_the_old_job_still_writes(standing: Standing) -> None:
    standing.slurm(squeue="18|PENDING|Resources||N/A", sacct="17|CANCELLED by 5|None||0:15")
    standing.sent("pretrain", "17")
    standing.started("pretrain", "17")
    standing.sent("pretrain", "18", "second")
    standing.ended("pretrain", "17", "leave", "cancelled")
    row = _rows(standing)["pretrain"]
    assert (row["job"], row["state"], row["attempts"]) == ("18", "PENDING (Resources)", "1")


def test_unknown_progress(standing: Standing) -> None:
    run = standing.runs / "pretrain"
    assert progress(run) is None
    standing.train("pretrain", 0)
    assert progress(run) is None
    standing.train("pretrain", 10)
    assert progress(run) is not None
    (run / "config.yaml").write_text("task: astrology\n")
    assert progress(run) is None
    assert _rows(standing)["pretrain"]["progress"] == "-"


def test_the_pace_is_that_of_the_last_rows(standing: Standing) -> None:
    standing.train("finetune", 100, rate=1.0, accuracy=0.9, loss=None)
    file = standing.runs / "finetune" / "metrics.jsonl"
    for step in range(102, 112, 2):  # on more nodes now
        row = {"step": step, "kind": "train", "epoch": step / 10, "images_per_s": 160.0}
        file.write_text(file.read_text() + json.dumps(row) + "\n")
    now = progress(standing.runs / "finetune")
    assert now is not None
    assert (now.step, now.total, now.score, now.value) == (110, 200, "accuracy", 0.9)
    assert now.seconds == pytest.approx(90 * 0.1)


@pytest.mark.parametrize("steps", [33, 354])
def test_max_steps_counts_whatever_the_epochs(standing: Standing, steps: int) -> None:
    standing.train("pretrain", 20)
    config = standing.runs / "pretrain" / "config.yaml"
    raw = json.loads(config.read_text())
    raw["train"]["max_steps"] = steps
    config.write_text(json.dumps(raw))
    now = progress(standing.runs / "pretrain")
    assert now is not None
    assert now.total == steps
    assert now.seconds == pytest.approx((steps - 20) * 16 / 100)


def test_programs_get_numbers(standing: Standing) -> None:
    standing.slurm(squeue="17|RUNNING|None|gpu[07-08]|N/A")
    standing.sent("pretrain", "17")
    standing.started("pretrain", "17")
    standing.train("pretrain", 100, rate=2.0, mse=0.02)
    found = json.loads(json.dumps(as_json(standing.targets, standing.state)))
    hours = found[0].pop("node_hours"), found[0].pop("gpu_hours")
    assert hours == (pytest.approx(2 * (time.time() - T0 - 3600) / 3600, rel=1e-3), 0)
    assert found[0] == {
        "phase": "pretrain",
        "kind": "run",
        "run": str(standing.runs / "pretrain"),
        "job": "17",
        "state": "RUNNING",
        "reason": "",
        "nodes": ["gpu07", "gpu08"],
        "attempts": 1,
        "step": 100,
        "total": 200,
        "seconds_left": 800.0,
        "score": "mse",
        "value": 0.02,
        "complete": False,
        "damage": "",
        "log": str(standing.state / "first" / "17_0_log.out"),
    }
    assert (found[2]["job"], found[2]["log"], found[2]["step"]) == (None, None, None)


def test_hours_that_were_used(standing: Standing) -> None:
    """Two nodes of four GPUs for 18 min, 1 h and 30 min, lost twice; then one node for 18 min."""
    standing.slurm(sacct="17|FAILED|None|gpu07|1:0\n18|COMPLETED|None|gpu07|0:0")
    standing.sent("pretrain", "17", gpus_per_node=4, nodes=2)
    standing.started("pretrain", "17")
    standing.ended("pretrain", "17", "requeue", "it fell")
    standing.started("pretrain", "17", 2)
    standing.started("pretrain", "17", 3)
    standing.train("pretrain", 20)
    wrote = T0 + 3 * 3600 + 1800
    os.utime(standing.runs / "pretrain" / "metrics.jsonl", (0, wrote))
    standing.sent("finetune", "18", processes_per_node=2)
    standing.started("finetune", "18", nodes=("gpu07",))
    standing.ended("finetune", "18", "done", "complete")
    found = as_json(standing.targets, standing.state)
    assert [one["gpu_hours"] for one in found] == pytest.approx([8 * (0.3 + 1 + 0.5), 0, 0])
    assert [one["node_hours"] for one in found] == pytest.approx([2 * 1.8, 0.3, 0])
    rows = {row[0]: row[HEADER.index("used")] for row in table_rows(found)}
    used = {"pretrain": "14.4 GPU-h", "finetune": "0.3 node-h", "evaluate": "-"}
    assert rows == {"phase": "used", **used}
    assert total_used(found) == "used so far: 14.4 GPU-h and 0.3 node-h"
    assert total_used(found[2:]) == ""
    # A table shows those of a run with its evaluations.
    standing.sent("evaluate", "19")
    standing.started("evaluate", "19", nodes=("gpu07",))
    standing.ended("evaluate", "19", "done", "complete")
    runs = used_by_runs(standing.state)
    assert {run.name: str(one) for run, one in runs.items()} == {
        "pretrain": "14.4 GPU-h",
        "finetune": "0.6 node-h",
    }
    table = Target(phase="table", run=standing.runs / "table", kind="table")
    file = hours_file(standing.state, "table")
    more = {"argv": ("-m", "lensdist", "report", "--used", str(file))}
    job = make_job(table, standing.state, "first", code=standing.state / "code", **more)
    start_attempt(job, "20", ("gpu07",), None)
    assert {run: hours["gpus"] for run, hours in json.loads(file.read_text()).items()} == {
        str(standing.runs / "pretrain"): pytest.approx(14.4),
        str(standing.runs / "finetune"): 0,
        str(table.run): 0,
    }
