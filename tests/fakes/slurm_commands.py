"""What the fake SLURM's commands do: PROGRAM, the file of its state, the command's words.

Messages and exit codes are those of SLURM 22.05; `tests/slurm/test_scheduler.py` compares them. It
knows what the launcher and submitit ask for. Anything else ends with 99 and is noted in the state,
so that no test takes an empty answer for SLURM's. Standard library alone: a test calls it often.
"""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

from tests.fakes.slurm_state import (
    FINISHED,
    PENDING,
    Failed,
    Job,
    State,
    Unsupported,
    hostnames,
    known,
    named,
    new_job,
    opened,
    options,
    rows,
    stamp,
)

NO_JOB = "Invalid job id specified"
NO_CONTROLLER = "Unable to contact slurm controller (connect failure)"
TIMED_OUT = "Socket timed out on send/recv operation"
NO_SCRIPT = """\
sbatch: error: This does not look like a batch script.  The first
sbatch: error: line must start with #! followed by the path to an interpreter.
sbatch: error: For instance: #!/bin/sh
"""


def directives(text: str) -> dict[str, str]:
    """The script's own flags of sbatch; "" for those without a value."""
    found = {}
    for line in text.splitlines():
        if line.startswith("#SBATCH"):
            for word in shlex.split(line[7:], comments=True):
                key, _, value = word.partition("=")
                if not key.startswith("--"):
                    raise Unsupported(f"{line}: write --key=value")
                found[key[2:]] = value
        elif line.strip() and not line.startswith("#"):
            break
    return found


def sbatch(state: State, words: list[str]) -> str:
    given, rest = options(
        words,
        "",
        "parsable",
        "test-only",
        "exclude=",
        "begin=",
        "comment=",
        "dependency=",
        "array=",
    )
    try:
        text = Path(rest[0]).read_text() if rest else sys.stdin.read()
    except OSError:
        raise Failed(1, f"sbatch: error: Unable to open file {rest[0]}\n") from None
    if not text.startswith("#!"):
        raise Failed(1, NO_SCRIPT)
    flags = directives(text) | {
        name: values[0] for name, values in given.items() if name not in ("parsable", "test-only")
    }
    refusal = NO_CONTROLLER if state["down"] else state["refusal"]
    testing = "test-only" in given
    if refusal and (testing or state["accepts"] <= 0 or state["down"]):
        what = "allocation failure" if testing else "sbatch: error: Batch job submission failed"
        raise Failed(1, f"{what}: {refusal}\n")
    if any((task or 0) >= state["largest_array"] for task in _tasks(flags.get("array", ""))):
        what = "Invalid job array specification"
        raise Failed(1, f"sbatch: error: Batch job submission failed: {what}\n")
    number = state["next"]
    state["next"] += 1
    if testing:
        raise Failed(0, f"sbatch: {_would_start(number, flags)}\n")  # on stderr, as the real one
    state["accepts"] -= 1
    for task in _tasks(flags.get("array", "")):
        job = new_job(number, task, flags, text)
        job["command"] = str(Path(rest[0]).absolute()) if rest else "(null)"
        state["jobs"][job["id"]] = job
    if state["loses"]:  # the answer, though the job is queued
        state["loses"] -= 1
        state["down"] = state["stays_down"]
        raise Failed(1, f"sbatch: error: Batch job submission failed: {TIMED_OUT}\n")
    return f"{number}\n" if "parsable" in given else f"Submitted batch job {number}\n"


def _tasks(text: str) -> list[int | None]:
    if not text:
        return [None]
    found: list[int | None] = []
    for part in text.partition("%")[0].split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def _would_start(number: int, flags: dict[str, str]) -> str:
    nodes = int(flags.get("nodes", "1").rpartition("-")[2])
    cores = nodes * int(flags.get("ntasks-per-node", 1)) * int(flags.get("cpus-per-task", 1))
    names = "node1" if nodes == 1 else f"node[1-{nodes}]"
    return (
        f"Job {number} to start at {stamp(0)} using {cores} processors on nodes {names} "
        f"in partition {flags.get('partition', 'main')}"
    )


def squeue(state: State, words: list[str]) -> str:
    given, rest = options(words, "hart:o:j:")
    if not {"h", "o"} <= set(given) or rest or given.get("t", ["all"])[0] not in ("all", "PD"):
        raise Unsupported("squeue without -h and -o, or of some states only")
    if "j" not in given:
        if state["down"]:
            raise Failed(1, f"slurm_load_jobs error: {NO_CONTROLLER}\n")
        if given.get("t") == ["all"]:
            jobs = [j for j in state["jobs"].values() if j["queued"]]
            return "".join(_fill(given["o"][0], job) + "\n" for job in rows(jobs))
        return _waiting(state, given["o"][0])
    ids = given["j"][0].split(",")
    for name in ids:
        if not re.fullmatch(r"\d+(_\d+)?", name):
            raise Failed(1, f"squeue: error: Invalid job id: {name}\n")
    # Of one job that is not there it says so; of several it shows those that are. Old ones
    # refuse all.
    if (len(ids) == 1 or state["strict"]) and not all(known(state, name) for name in ids):
        raise Failed(1, f"slurm_load_jobs error: {NO_JOB}\n")
    if state["down"]:
        raise Failed(1, f"slurm_load_jobs error: {NO_CONTROLLER}\n")
    jobs = [j for j in state["jobs"].values() if j["queued"] and {j["id"], j["array"]} & set(ids)]
    if "t" not in given:
        jobs = [j for j in jobs if j["state"] not in FINISHED]
    return "".join(_fill(given["o"][0], job) + "\n" for job in jobs)


def _waiting(state: State, form: str) -> str:
    jobs = [j for j in state["jobs"].values() if j["queued"] and j["state"] in PENDING]
    return "".join(_fill(form, job) + "\n" for job in rows(jobs))


def _fill(form: str, job: Job) -> str:
    fields = {"i": "id", "T": "state", "r": "reason", "N": "nodes", "L": "left", "k": "comment"}
    fields |= {"E": "waits", "F": "number", "j": "name", "o": "command"}
    waits = ",".join(f"{one}(unfulfilled)" for one in job["dependency"].split(",") if one)
    job = job | {"waits": waits or "(null)", "number": job["id"].partition("_")[0]}
    try:
        return re.sub(r"%(\w)", lambda found: str(job[fields[found[1]]]), form)
    except KeyError as e:
        raise Unsupported(f"squeue -o %{e.args[0]}") from e


def sacct(state: State, words: list[str]) -> str:
    if not state["accounting"]:
        raise Failed(1, "Slurm accounting storage is disabled\n")
    given, rest = options(words, "nXPo:j:", "parsable2")
    if rest or not {"P", "parsable2"} & set(given) or not {"o", "j"} <= set(given):
        raise Unsupported("sacct without -P, -o and -j")
    ids = ",".join(given["j"]).split(",")
    # It remembers what the queue has forgotten, and lags behind it where a test says so.
    jobs = [{**j, **j["accounted"]} for j in state["jobs"].values() if j["accounted"] is not None]
    jobs = rows([j for j in jobs if {j["id"], j["array"]} & set(ids)])
    columns = given["o"][0].split(",")
    head = [] if "n" in given else ["|".join(columns)]
    lines = head + ["|".join(_column(name, job) for name in columns) for job in jobs]
    return "".join(line + "\n" for line in lines)


def _column(name: str, job: Job) -> str:
    # COMPLETING is the queue's word; who cancelled is accounting's.
    state = {"COMPLETING": "RUNNING", "CANCELLED": "CANCELLED by 0"}.get(job["state"], job["state"])
    values = {"JobID": job["id"], "JobName": job["name"], "State": state, "Reason": job["reason"]}
    values |= {"NodeList": job["nodes"] or "None assigned", "ExitCode": job["exit_code"]}
    if name not in values:
        raise Unsupported(f"sacct -o {name}")
    return str(values[name])


def scontrol(state: State, words: list[str]) -> str:
    one_line = words[:1] == ["-o"]
    match words[one_line:]:
        case ["show", "job", name]:
            return _show(state, name, " " if one_line else "\n   ")
        case ["show", "hostnames", expression]:
            return "".join(f"{name}\n" for name in hostnames(expression))
        case ["show", "config"]:
            return _config(state)
        case ["requeue", names]:
            return "".join(_requeue(state, name) for name in names.split(","))
        case ["update", job, *changes] if job.startswith("JobId="):
            return _update(state, job[6:], changes)
    raise Unsupported(f"scontrol {' '.join(words)}")


def _config(state: State) -> str:
    if state["down"]:
        raise Failed(1, "", f"slurm_load_ctl_conf error: {NO_CONTROLLER}\n")
    values = {"MaxArraySize": state["largest_array"], "MaxJobCount": 10000}
    return "".join(f"{key:<23} = {value}\n" for key, value in values.items())


def _show(state: State, name: str, between: str) -> str:
    if state["down"]:
        raise Failed(1, f"slurm_load_jobs error: {NO_CONTROLLER}\n")
    if not name.replace("_", "").isdigit():
        raise Failed(1, f"scontrol_print_job error: {NO_JOB}\n")
    if not known(state, name):
        raise Failed(1, f"slurm_load_jobs error: {NO_JOB}\n")
    jobs = named(state, name)
    if not jobs:
        raise Failed(1, "", f"Job {name} not found\n")
    return "".join(between.join(_fields(job)) + " \n" for job in rows(jobs))


def _fields(job: Job) -> list[str]:
    number, _, task = job["id"].partition("_")
    array = {"ArrayJobId": number, "ArrayTaskId": task.strip("[]")} if task else {}
    values = {
        "JobId": number,
        **array,
        "JobName": job["name"],
        "JobState": job["state"],
        "Reason": job["reason"].replace(" ", "_"),
        "Dependency": f"{job['dependency']}(unfulfilled)" if job["dependency"] else "(null)",
        "Requeue": job["requeue"],
        "Restarts": job["restarts"],
        "ExitCode": job["exit_code"],
        "StartTime": job["start_time"] or "Unknown",
        "PreemptTime": job["preempt_time"],
        "Partition": job["partition"],
        "ExcNodeList": job["excluded"] or "(null)",
        "NodeList": job["nodes"],
    }
    return [f"{key}={value}" for key, value in values.items()]


def _requeue(state: State, name: str) -> str:
    for job in _controlled(state, name):
        if not job["requeue"]:
            raise Failed(1, f"Requested operation is presently disabled for job {name}\n")
        if job["state"] in PENDING:
            if job["array"]:
                tasks = rows(named(state, job["array"]))[0]["id"].translate({91: None, 93: None})
                raise Failed(1, f"{tasks}: Job is pending execution\n")
            raise Failed(1, f"Job is pending execution for job {name}\n")
        job |= {"state": "PENDING", "reason": "BeginTime", "restarts": job["restarts"] + 1}
        job |= {"nodes": "", "exit_code": "0:0", "delay": 0, "dependency": ""}
    return ""


def _update(state: State, name: str, changes: list[str]) -> str:
    for job in _controlled(state, name):
        if job["state"] in FINISHED:
            raise Failed(1, f"Job has already finished for job {name}\n")
        if job["state"] not in PENDING and not changes[0].startswith("Comment="):
            raise Failed(1, f"Job is no longer pending execution for job {name}\n")
        for change in changes:
            key, _, value = change.partition("=")
            if key == "Comment":
                job["comment"] = value
            elif key == "ExcNodeList":
                job["excluded"] = value
            elif key == "Dependency":
                ids = re.findall(r":(\w+)", value)
                if not all(known(state, i) for i in ids) or name in ids:
                    raise Failed(1, f"Job dependency problem for job {name}\n")
                job |= {"dependency": value, "reason": "Dependency"}
            elif key == "StartTime" and re.fullmatch(r"now\+\d+", value):
                job |= {"delay": int(value[4:]), "start_time": stamp(int(value[4:]))}
            else:
                raise Unsupported(f"scontrol update {change}")
    return ""


def _controlled(state: State, name: str) -> list[Job]:
    jobs = named(state, name)
    if state["down"] or not jobs:
        raise Failed(1, f"{NO_CONTROLLER if state['down'] else NO_JOB} for job {name}\n")
    return jobs


def scancel(state: State, words: list[str]) -> str:
    _, names = options(words, "")
    if not names:
        raise Failed(1, "scancel: error: No job identification provided\n")
    for name in names:
        if not re.fullmatch(r"\d+(_\d+)?", name):
            raise Failed(1, f"scancel: error: Invalid job id {name}\n")
        jobs = [j for j in named(state, name) if j["state"] not in FINISHED]
        if state["down"]:
            raise Failed(1, f"scancel: error: Kill job error on job id {name}: {NO_CONTROLLER}\n")
        for job in jobs:
            ran = job["state"] not in PENDING
            job |= {"state": "CANCELLED", "exit_code": "0:15" if ran else "0:0"}
            # A task that waited, alone of its array, is forgotten by the queue.
            job["queued"] = ran or name != job["id"] or not job["array"]
    return ""


def srun(state: State, words: list[str]) -> str:
    raise Unsupported("srun: nothing runs here")


COMMANDS = {f.__name__: f for f in (sbatch, squeue, sacct, scontrol, scancel, srun)}


def main() -> None:
    """Run one command, and note that it was run."""
    program, path, *words = sys.argv[1:]
    with opened(Path(path)) as state:
        state["calls"].append([program, *words])
        code, err, out = 0, "", ""
        try:
            out = COMMANDS[program](state, words)
        except Failed as e:
            code, err, out = (*e.args, "")[:3]
        except Unsupported as e:
            code, err = 99, f"the fake SLURM does not support this: {e}\n"
            state["unsupported"].append(f"{program}: {e}")
    sys.stdout.write(out)
    sys.stderr.write(err)
    sys.exit(code)
