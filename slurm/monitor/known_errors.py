"""What SLURM's words and the libraries' errors mean, and what to do about them: tables."""

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
        pattern: regular expression of what is said, in any case.
        means: what it means, and what to do.
        command: to type then, of `submit.py`; `{phase}` and `{job}` are filled in.
        settings: to submit with instead, because a job that is resumed keeps what it was sent with.
            `{smaller}` (micro-batch), `{lower}` (learning rate), `{more}` (GB) are worked out.
        anew: the settings are part of what is computed, so a run that has begun does so again.
        weak: a sign that another process fell first: any other cause is a better one.
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
        "A GPU's memory is full. A smaller train.micro_batch computes the same step in smaller "
        "parts.",
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
        "The training diverged, and would again from the same checkpoint. Lower optim.lr, or set "
        "optim.clip_norm.",
        settings="{phase}.optim.lr={lower}",
        anew=True,
    ),
    Cause(
        r"No space left|Errno 28\b|quota exceeded|Errno 122\b|state could not be saved",
        "The disk, or your quota, is full: make room where the runs lie, then go on.",
    ),
    Cause(
        r"Read-only file system|Errno 30\b|Input/output error|Stale file handle|Errno (5|116)\b",
        "The file system failed; go on once it works again (if it stays, ask the centre).",
    ),
    Cause(
        r"Bus error|SIGBUS|shared memory.*(full|insufficient|/dev/shm)",
        "Shared memory (/dev/shm) of the node was full, or a file was cut under its reader.",
    ),
    Cause(
        r"\bXid\b|fallen off the bus|uncorrectable ECC|ECC error|unspecified launch failure"
        r"|device\(s\) is/are busy|no CUDA-capable device|CUDA driver|NVIDIA driver",
        "A GPU or its driver is not in order on that node: leave it out, and tell the centre.",
        settings="cluster.exclude=[NODE]",
    ),
    Cause(
        r"^TIMEOUT$|DUE TO TIME LIMIT",
        "SLURM ended it at its time limit before it had saved: give it more time for that.",
        settings="cluster.save_before_end=SECONDS",
    ),
    Cause(
        r"another run is writing to",
        "Another process has this run's folder: let it end, or cancel it.",
    ),
    Cause(
        r"EADDRINUSE|Address already in use",
        "Another program had the port by which the processes meet; a new job takes another one.",
    ),
    Cause(
        r"ModuleNotFoundError|ImportError|No module named|cannot open shared object file"
        r"|command not found|execve\(\)",
        "The node's environment lacks something: mend setup (module load, activate), python or "
        "container in the cluster's file, and submit again as before.",
        command=SUBMIT,
    ),
    Cause(
        r"Permission denied|Errno 13\b",
        "The node may not read or write what the sentence names: mend its permissions.",
    ),
    Cause(
        r"Watchdog caught|NCCL.*tim(ed|e) ?out|collective operation timeout|ncclSystemError"
        r"|ncclInternalError|connectFullMesh|DistNetworkError|DistStoreError|RendezvousTimeout"
        r"|(socket|store|rendezvous|gloo).*tim(ed|e) ?out|Timed out waiting \d+ ?ms for",
        "The processes waited for each other in vain: one hung, or the network between nodes is "
        "not the one that the libraries chose. Name it with cluster.interface (`ip -br addr`).",
        settings="cluster.interface=NAME",
        weak=True,
    ),
    Cause(
        r"Connection (closed|reset) by peer|ncclRemoteError|remote process exited|Broken pipe"
        r"|Connection refused",
        "Another process of the run was lost, and this one only noticed: find what ended that one.",
        weak=True,
    ),
)

KINDS = {
    "input": "The input or the configuration is wrong. Mend the files and resume; but what is sent "
    "again keeps its settings, so after a wrong setting submit with another one.",
    "failed": "The run itself says why it cannot go on: do what the sentence says, then go on.",
    "crashed": "Nobody foresaw this error. If it comes again, send this page to the developers.",
    "device": "A node did not pass its check; it is left out from then on (tell the centre).",
    "shared": "What the check met, other nodes may meet too, so no node is left out for it: mend "
    "what the sentence says.",
    "busy": "Another process has the run's folder, most likely one that outlived the last attempt; "
    "once it has ended, the run can go on.",
    "saved": "It saved before it ended, so nothing is lost.",
    "done": "It is not complete, though it ended as if it were: its log may say why.",
    "cancelled": "It was cancelled, and goes on when it is sent again.",
    "silent": "No process could say why: it was killed from outside, or did not even begin.",
}
"""How the worst process ended, where no cause is known."""

LOST = {
    "sent": "It ended before it could begin: SLURM's word, or a log, may say why.",
    "started": "It was lost with all its processes; nothing says that this would happen again.",
    "cancelled": "It was cancelled, and goes on when it is sent again.",
}
"""The last event, where no end was written down."""

STATES = {
    "OUT_OF_MEMORY": "the job used more memory of the node than it asked for",
    "TIMEOUT": "the job ran into its time limit",
    "NODE_FAIL": "a node died, or the controller lost it",
    "PREEMPTED": "a job of higher priority took the nodes",
    "CANCELLED": "somebody cancelled it: you, an administrator, or SLURM because what it waits for "
    "failed",
    "BOOT_FAIL": "a node did not boot",
    "DEADLINE": "it could not end before its deadline",
    "LAUNCH_FAILED": "its processes could not be started on the nodes",
    "REVOKED": "another cluster of the federation took it",
}
"""Ends of jobs."""

_SIGNALS = {
    6: "it aborted (SIGABRT), as libraries do after an error of their own; the log has it",
    7: "a bus error (SIGBUS): /dev/shm is full, or a file was cut under its reader",
    9: "it was killed (SIGKILL): by the kernel or SLURM for its memory, or at a limit",
    11: "a segmentation fault (SIGSEGV): broken libraries, or hardware",
    15: "it was told to end (SIGTERM): scancel, preemption or the time limit",
    53: "SLURM could not open the log: the node does not see the runs' folder",
}
_STATUSES = {
    2: "bad configuration or input",
    75: "it saved and left, to be started again",
    126: "the interpreter may not be executed there",
    127: "the interpreter, or a command of cluster.setup, is not there",
}

REASONS = (
    Cause("DependencyNeverSatisfied", "What it waits for has failed, so it will never start."),
    Cause("^Dependency$", "It waits for an earlier phase, and starts by itself after it.", WATCH),
    Cause("^Priority$", "Jobs of higher priority come first; then it starts by itself.", WATCH),
    Cause("^Resources$", "It is next, and waits for nodes to become free.", WATCH),
    Cause(
        "^BeginTime$",
        "It waits a little before it starts again by itself, longer after each crash in a row.",
        WATCH,
    ),
    Cause(
        "launch failed requeued held",
        "SLURM could not start it on a node, and holds it: release it, and tell the centre if it "
        "happens again.",
        RELEASE,
    ),
    Cause("JobHeldAdmin", "An administrator holds it: ask the centre.", WATCH),
    Cause("held", "Somebody holds it (`scontrol hold`).", RELEASE),
    Cause(
        r"PartitionTimeLimit|MaxWall\w*PerJob|AssociationTimeLimit",
        "cluster.walltime is more than the partition or your account allows: lower it.",
        settings="cluster.walltime=MINUTES",
    ),
    Cause(
        "PartitionNodeLimit|BadConstraints|NodePerJob|PartitionConfig",
        "The partition has no such nodes, or not so many for one job: ask for others, or fewer.",
        settings="cluster.nodes=N",
    ),
    Cause(
        "Invalid(Account|QOS)|AccountNotAllowed|QOSNotAllowed|AccountingPolicy",
        "cluster.account or cluster.qos may not be used here (`sacctmgr show assoc user=$USER`).",
        settings="cluster.account=NAME",
    ),
    Cause(
        r"QOS\w*|Assoc\w*|JobArrayTaskLimit",
        "Your account or its QOS is at a limit. It starts when jobs of yours, or of your group, "
        "end; if it alone asks for more than the limit, ask for less.",
        WATCH,
    ),
    Cause(
        "ReqNodeNotAvail|Nodes required|NodeDown|Reserv",
        "Nodes that it needs are down, drained or reserved, often for a maintenance that begins "
        "before its time limit; with a shorter cluster.walltime it may fit before that.",
        WATCH,
    ),
    Cause(
        "Partition(Down|Inactive)|Cleaning|Prolog|FrontEndDown|BurstBuffer|SchedDefer",
        "The cluster is not ready for it; it starts by itself.",
        WATCH,
    ),
    Cause("^Licenses$", "It waits for a licence.", WATCH),
)
"""Why a job waits."""


def known(text: str, table: tuple[Cause, ...] = ERRORS) -> Cause | None:
    """The first cause of a table that a text speaks of."""
    how = re.IGNORECASE | re.MULTILINE
    return next((cause for cause in table if re.search(cause.pattern, text, how)), None)


def why_waiting(reason: str) -> Cause:
    """What SLURM's reason means."""
    # squeue writes "launch failed requeued held", scontrol the same with underscores.
    found = known(reason.replace("_", " "), REASONS)
    if found is None:
        return Cause("", f"SLURM gives the reason {reason or 'None'} (`man squeue`).", WATCH)
    return found


def why_exit(code: str) -> str:
    """`status:signal` in words; empty where there is nothing to say."""
    status, _, number = code.partition(":")
    if not (status.isdigit() and number.isdigit()):
        return ""
    if int(number) == 0 and int(status) > 128:  # a shell's way to tell of a signal
        number = str(int(status) - 128)
    if int(number):
        return _SIGNALS.get(int(number), f"signal {number} ended it")
    return _STATUSES.get(int(status), "")
