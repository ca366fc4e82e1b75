"""Tables: what SLURM's states and the libraries' errors mean, and what to do."""

from __future__ import annotations

import re
from typing import NamedTuple

RESUME = "resume {phase}"
SUBMIT = "submit …"
WATCH = "logs -f {phase}"
RELEASE = "scontrol release {job}"


class Cause(NamedTuple):
    """One known cause.

    Attributes:
        pattern: regular expression of the message, in any case.
        means: what it means, and what to do.
        command: the command of `submit.py` to type, with `{phase}` and `{job}`.
        settings: settings to submit with, since a resumed job keeps its settings. `{smaller}`
            (micro-batch), `{lower}` (learning rate) and `{more}` (GB) are computed.
        anew: the settings change the result, so a run that has begun starts from step 0.
        weak: only says that another process failed first; any other cause is better.
    """

    pattern: str
    means: str
    command: str = RESUME
    settings: str = ""
    anew: bool = False
    weak: bool = False


ERRORS = (
    Cause(
        r"(CUDA|HIP)( error:)? out of memory|(CUBLAS|CUDNN)_STATUS_ALLOC_FAILED",
        "A GPU's memory is full. A smaller train.micro_batch needs less memory for the same step.",
        settings="{phase}.train.micro_batch={smaller}",
        anew=True,
    ),
    Cause(
        r"oom[-_ ]kill|out[-_ ]of[-_ ]memory|MemoryError|Cannot allocate memory|bad_alloc"
        r"|DefaultCPUAllocator",
        "The node's memory was full (not a GPU's). Ask for more with cluster.mem_gb.",
        settings="cluster.mem_gb={more}",
    ),
    Cause(
        r"the loss is -?(nan|inf)",
        "The training diverged, and would do so again. Lower optim.lr, or set optim.clip_norm.",
        settings="{phase}.optim.lr={lower}",
        anew=True,
    ),
    Cause(
        r"No space left|Errno 28\b|quota exceeded|Errno 122\b|state could not be saved",
        "The disk, or your quota, is full: make room where the runs are, then resume.",
    ),
    Cause(
        r"Read-only file system|Errno 30\b|Input/output error|Stale file handle|Errno (5|116)\b",
        "The file system failed: resume when it works again, or ask the computing centre.",
    ),
    Cause(
        r"Bus error|SIGBUS|shared memory.*(full|insufficient|/dev/shm)",
        "Shared memory (/dev/shm) of the node was full, or a file was shortened while it was read.",
    ),
    Cause(
        r"\bXid\b|fallen off the bus|uncorrectable ECC|ECC error|unspecified launch failure"
        r"|device\(s\) is/are busy|no CUDA-capable device|CUDA driver|NVIDIA driver",
        "A GPU or its driver does not work on that node: exclude it, and tell the centre.",
        settings="cluster.exclude=[NODE]",
    ),
    Cause(
        r"^PREEMPTED$",
        "Jobs of higher priority took its nodes before it could ask for others: resume it.",
    ),
    Cause(
        r"left no report of its check|the job leaves it out|cannot run .*\(see the log\)",
        "The node does not see the environment, the code or the runs: it is no longer used. If it "
        "happens on several nodes, put them on a file system that all nodes see.",
    ),
    Cause(
        r"is a build for CPUs",
        "This torch cannot use a GPU on any node: install a build for GPUs, and submit again.",
        command=SUBMIT,
    ),
    Cause(
        r"^TIMEOUT$|DUE TO TIME LIMIT",
        "SLURM ended it at its time limit before it had saved: give it more time to save.",
        settings="cluster.save_before_end=SECONDS",
    ),
    Cause(
        r"another run is writing to",
        "Another process uses this run's folder: let it end, or cancel it.",
    ),
    Cause(
        r"EADDRINUSE|Address already in use",
        "Another program used the port of the processes; a new job uses another port.",
    ),
    Cause(
        r"ModuleNotFoundError|ImportError|No module named|cannot open shared object file"
        r"|command not found|execve\(\)",
        "The node's environment lacks something: correct setup (module load, activate), python or "
        "container in the cluster's file, and submit again as before.",
        command=SUBMIT,
    ),
    Cause(
        r"Permission denied|Errno 13\b",
        "The node may not read or write the file in the message: correct its permissions.",
    ),
    Cause(
        r"Watchdog caught|NCCL.*tim(ed|e) ?out|collective operation timeout|ncclSystemError"
        r"|ncclInternalError|connectFullMesh|DistNetworkError|DistStoreError|RendezvousTimeout"
        r"|(socket|store|rendezvous|gloo).*tim(ed|e) ?out|Timed out waiting \d+ ?ms for",
        "The processes did not reach each other: one hung, or the libraries chose a wrong network "
        "between the nodes. Set cluster.interface (`ip -br addr` lists them).",
        settings="cluster.interface=NAME",
        weak=True,
    ),
    Cause(
        r"Connection (closed|reset) by peer|ncclRemoteError|remote process exited|Broken pipe"
        r"|Connection refused",
        "This process only noticed that another one had ended: find the cause there.",
        weak=True,
    ),
)

KINDS = {
    "input": "The input or the configuration is wrong. Correct the files and resume; after a wrong "
    "setting, submit with another one, since a resumed phase keeps its settings.",
    "failed": "The message says why the run cannot go on: do what it says, then resume.",
    "crashed": "This error is not known. If it comes again, send this page to the developers.",
    "device": "A node failed its check, and is no longer used (tell the computing centre).",
    "shared": "Other nodes may have this problem too, so no node is excluded: do what the message "
    "says.",
    "busy": "Another process uses the run's folder, probably one of the last attempt; when it has "
    "ended, the run can go on.",
    "saved": "It saved before it ended, so nothing is lost.",
    "done": "It ended as if it were complete, but it is not: its log may say why.",
    "cancelled": "It was cancelled, and goes on when it is resumed.",
    "silent": "No process could report why: it was killed from outside, or did not start.",
}
"""By the kind of the worst process's end, if no cause is known."""

LOST = {
    "sent": "It ended before it started: SLURM's state, or a log, may say why.",
    "started": "It was lost with all its processes; it may well run the next time.",
    "cancelled": "It was cancelled, and goes on when it is resumed.",
}
"""By the last event, if no end was logged."""

STATES = {
    "OUT_OF_MEMORY": "the job used more memory of the node than it asked for",
    "TIMEOUT": "the job reached its time limit",
    "NODE_FAIL": "a node failed, or the controller lost it",
    "PREEMPTED": "a job of higher priority took the nodes",
    "CANCELLED": "it was cancelled by you, an administrator, or SLURM because a job that it needs "
    "failed",
    "BOOT_FAIL": "a node did not boot",
    "DEADLINE": "it could not end before its deadline",
    "LAUNCH_FAILED": "its processes could not be started on the nodes",
    "REVOKED": "another cluster of the federation took it",
}
"""SLURM's states of jobs that have ended."""

_SIGNALS = {
    6: "it aborted (SIGABRT), as libraries do after an error; the log may show it",
    7: "a bus error (SIGBUS): /dev/shm is full, or a file was shortened while it was read",
    9: "it was killed (SIGKILL) by the kernel or SLURM: for its memory, or at a limit",
    11: "a segmentation fault (SIGSEGV): broken libraries, or hardware",
    15: "it was asked to end (SIGTERM): scancel, preemption or the time limit",
    53: "SLURM could not open the log: the node does not see the runs' folder",
}
_STATUSES = {
    2: "bad configuration or input",
    75: "it saved and stopped, to be started again",
    126: "the interpreter cannot be executed there",
    127: "the interpreter, or a command of cluster.setup, does not exist there",
}

REASONS = (
    Cause("DependencyNeverSatisfied", "A job that it needs has failed, so it will never start."),
    Cause("^Dependency$", "It waits for an earlier phase, and starts by itself after that.", WATCH),
    Cause("^Priority$", "Jobs of higher priority start first; then it starts by itself.", WATCH),
    Cause("^Resources$", "It is next, and waits for nodes to become free.", WATCH),
    Cause(
        "^BeginTime$",
        "It starts again by itself, later after each further crash.",
        WATCH,
    ),
    Cause(
        "launch failed requeued held",
        "SLURM could not start it on a node, and holds it: release it; if it happens again, tell "
        "the computing centre.",
        RELEASE,
    ),
    Cause("JobHeldAdmin", "An administrator holds it: ask the computing centre.", WATCH),
    Cause("held", "Somebody holds it (`scontrol hold`).", RELEASE),
    Cause(
        r"PartitionTimeLimit|MaxWall\w*PerJob|AssociationTimeLimit",
        "cluster.walltime is more than the partition or your account allows: lower it.",
        settings="cluster.walltime=MINUTES",
    ),
    Cause(
        "PartitionNodeLimit|BadConstraints|NodePerJob|PartitionConfig",
        "The partition has no such nodes, or fewer for one job: ask for others, or fewer.",
        settings="cluster.nodes=N",
    ),
    Cause(
        "Invalid(Account|QOS)|AccountNotAllowed|QOSNotAllowed|AccountingPolicy",
        "You may not use cluster.account or cluster.qos (see `sacctmgr show assoc user=$USER`).",
        settings="cluster.account=NAME",
    ),
    Cause(
        r"QOS\w*|Assoc\w*|JobArrayTaskLimit",
        "Your account or its QOS is at a limit. It starts when other jobs of yours, or of your "
        "group, end; if it alone is above the limit, ask for less.",
        WATCH,
    ),
    Cause(
        "ReqNodeNotAvail|Nodes required|NodeDown|Reserv",
        "Nodes that it needs are down, drained or reserved, often for a maintenance. It may end "
        "before that with a shorter cluster.walltime.",
        WATCH,
    ),
    Cause(
        "Partition(Down|Inactive)|Cleaning|Prolog|FrontEndDown|BurstBuffer|SchedDefer",
        "The cluster is not ready for it; it starts by itself.",
        WATCH,
    ),
    Cause("^Licenses$", "It waits for a licence.", WATCH),
)
"""SLURM's reasons for which a job waits."""


REFUSALS = (
    Cause(
        "time limit",
        "cluster.walltime is more than the partition or your account allows: lower it.",
        settings="cluster.walltime=MINUTES",
    ),
    Cause(
        "partition",
        "You may not use cluster.partition and cluster.account together, or one of them does not "
        "exist (`sinfo` lists partitions).",
        settings="cluster.partition=NAME",
    ),
    Cause(
        r"account|qos|permi",
        "You may not use cluster.account or cluster.qos, or it has too many jobs already (see "
        "`sacctmgr show assoc user=$USER`).",
        settings="cluster.account=NAME",
    ),
    Cause(
        "configuration is not available|node count|generic resource|feature|memory|cpu",
        "The partition has no such nodes: ask for fewer GPUs, cores or memory, or for others.",
        command=SUBMIT,
    ),
)
"""What sbatch says when it takes no job."""


def find_cause(text: str, table: tuple[Cause, ...] = ERRORS) -> Cause | None:
    """Return the first cause of a table whose pattern is in a text."""
    how = re.IGNORECASE | re.MULTILINE
    return next((cause for cause in table if re.search(cause.pattern, text, how)), None)


def explain_waiting(reason: str) -> Cause:
    """Return what SLURM's reason means."""
    # squeue writes "launch failed requeued held", scontrol the same with underscores.
    found = find_cause(reason.replace("_", " "), REASONS)
    unknown = f"SLURM gives the reason {reason or 'None'} (see `man squeue`)."
    return found or Cause("", unknown, WATCH)


def explain_exit(code: str) -> str:
    """Return what `status:signal` means; empty if nothing is known."""
    status, _, number = code.partition(":")
    if not (status.isdigit() and number.isdigit()):
        return ""
    if int(number) == 0 and int(status) > 128:  # a shell adds 128 to a signal's number
        number = str(int(status) - 128)
    if int(number):
        return _SIGNALS.get(int(number), f"signal {number} ended it")
    return _STATUSES.get(int(status), "")
