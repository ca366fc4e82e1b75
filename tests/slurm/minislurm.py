"""A real SLURM of one controller and a few nodes in a folder, for tests (Linux, root).

All nodes are this machine, and their processes are plain processes of it. They are named 127.0.0.1,
127.0.0.2, …: names that resolve without touching /etc/hosts. Debian's packages: `make slurm-deps`.
"""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol")
OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED")

_CONF = """\
ClusterName=lensdist
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
# cred_expire is also the delay before a requeued job starts again (default 120 s); below 5 refused
AuthInfo=socket={base}/munge.sock,cred_expire=5
StateSaveLocation={base}/state
SlurmdSpoolDir={base}/spool/%n
SlurmctldPidFile={base}/slurmctld.pid
SlurmdPidFile={base}/slurmd.%n.pid
SlurmctldLogFile={base}/log/slurmctld.log
SlurmdLogFile={base}/log/slurmd.%n.log
# no cgroups: as with them, signals reach a step's tasks only, not what those start in sessions of
# their own; unlike with them, all of a batch script's process group and not the script alone
ProctrackType=proctrack/pgid
MpiDefault=none
MailProg=/bin/true
PropagateResourceLimits=NONE
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
# the declared cores are believed: a test may have more processes than the machine has cores
SlurmdParameters=config_overrides
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
# a node is DOWN 10-14 s after its death, and its jobs are queued again
SlurmdTimeout=5
MessageTimeout=3
SlurmctldTimeout=10
BatchStartTimeout=10
KillWait=30
MinJobAge=86400
# a new cluster must not hand out the ids of the last one
FirstJobId={first}
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=10000,bf_interval=1
PriorityType=priority/basic
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
# --signal is sent at preemption too, when GraceTime begins
SlurmctldParameters=preempt_send_user_signal
{nodes}
PartitionName=DEFAULT Nodes=ALL MaxTime=INFINITE DefaultTime=10 State=UP
PartitionName=main Default=YES PriorityTier=10 PreemptMode=REQUEUE GraceTime=10
PartitionName=scavenge PriorityTier=5 PreemptMode=CANCEL GraceTime=0
PartitionName=high PriorityTier=20 PreemptMode=OFF
"""


def missing() -> list[str]:
    """Programs that a cluster needs and this machine lacks."""
    return [name for name in PROGRAMS if shutil.which(name) is None]


class MiniSlurm:
    """A cluster; use it as a context. Several may be up at once.

    Args:
        base: an empty folder for its state and logs.
        nodes: how many.
        cpus: cores that each node declares.
        conf: lines at the end of slurm.conf.
        gres: lines of gres.conf, which name the files `{base}/device0`, ….
        resources: the Gres of each node.
    """

    def __init__(
        self,
        base: Path,
        nodes: int = 4,
        cpus: int = 4,
        *,
        conf: str = "",
        gres: str = "",
        resources: str = "",
    ) -> None:
        self.base = base
        self.names = [f"127.0.0.{i}" for i in range(1, nodes + 1)]
        self._cpus = cpus
        self._conf, self._gres, self._resources = conf, gres, resources
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._hidden: list[tuple[str, str]] = []
        self._claim = socket.socket(socket.AF_UNIX)
        self.environment = {"SLURM_CONF": str(base / "slurm.conf")}

    def __enter__(self) -> MiniSlurm:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._daemons:
            with contextlib.suppress(TimeoutError):
                self._cancel_all()
        for daemon in reversed(self._daemons.values()):
            daemon.terminate()
        for daemon in reversed(self._daemons.values()):
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        self._daemons.clear()
        _kill(self._processes())  # pgid loses what a killed launcher leaves; a real node would not
        self._claim.close()

    def run(self, *words: str, check: bool = True) -> str:
        """A client command's output."""
        env = {**os.environ, **self.environment}
        done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(words)}: {done.stderr}")
        return done.stdout

    def job(self, number: str) -> dict[str, str]:
        """What SLURM knows of a job: JobState, NodeList, ExitCode, Restarts, …"""
        words = self.run("scontrol", "-o", "show", "job", number).split()
        return dict(w.split("=", 1) for w in words if "=" in w)

    def wait_state(self, number: str, states: Collection[str], timeout: float) -> str:
        """Wait until a job is in one of some states; the one that it is in."""
        what = f"job {number} to be {' or '.join(states)}"
        try:
            _wait(lambda: self.job(number)["JobState"] in states, timeout, what)
        except TimeoutError as e:
            e.add_note(self.run("scontrol", "show", "job", number))
            raise
        return self.job(number)["JobState"]

    def finished(self, number: str, timeout: float) -> str:
        """Wait for a job's end; the state that it ended in."""
        return self.wait_state(number, OVER, timeout)

    def tasks(self, number: str, node: str) -> list[int]:
        """Processes of a job's steps on a node: srun's tasks and what they started.

        The batch script and its srun are not among them.
        """
        return self._processes(f"SLURM_JOB_ID={number}", f"SLURMD_NODENAME={node}", "SLURM_STEP_ID")

    def node(self, name: str) -> str:
        """A node's state: IDLE, MIXED, ALLOCATED, DOWN+NOT_RESPONDING, IDLE+DRAIN, …"""
        return self.run("scontrol", "-o", "show", "node", name).split("State=")[1].split()[0]

    def node_crash(self, name: str) -> None:
        """A machine dies: its slurmd and its jobs' processes, at once. SLURM is not told."""
        daemon = self._daemons.pop(name)
        victims = self._processes(f"SLURMD_NODENAME={name}")
        # slurmstepd lacks that mark; it goes first, or it would report how its tasks ended.
        _kill([*{step for pid in victims for step in _stepd(pid)}, daemon.pid, *victims])
        daemon.wait()

    def node_start(self, name: str) -> None:
        """Boot a crashed node, and wait until it takes jobs."""
        # No machine is back before SLURM has missed it; a plain process would be.
        _wait(lambda: self.node(name).startswith("DOWN"), 60, f"{name} to be missed")
        self._boot(name)
        self._ready(name)

    def hide(self, name: str, folder: Path) -> None:
        """Let a node see nothing in a folder, as if its file system were not mounted there."""
        self._in_node(name, "mount", "-t", "tmpfs", "none", str(folder))
        self._hidden.append((name, str(folder)))

    @contextlib.contextmanager
    def no_answer(self) -> Iterator[None]:
        """The controller stops: what is sent to it waits until it goes on."""
        controller = self._daemons["slurmctld"]
        controller.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            controller.send_signal(signal.SIGCONT)

    def drain(self, name: str) -> None:
        """No more jobs on a node; those that run go on."""
        self.run("scontrol", "update", f"NodeName={name}", "State=DRAIN", "Reason=test")

    def undrain(self, name: str) -> None:
        """Jobs may use it again."""
        self.run("scontrol", "update", f"NodeName={name}", "State=RESUME")
        self._ready(name)

    def clear(self) -> None:
        """Cancel all jobs, boot and undrain all nodes: as it was when it was new."""
        self._cancel_all()
        for name, folder in self._hidden:
            self._in_node(name, "umount", folder)
        self._hidden.clear()
        for name in self.names:
            if name not in self._daemons:
                self.node_start(name)
            if "DRAIN" in self.node(name):
                self.undrain(name)

    def _start(self) -> None:
        for folder in ("state", "log", *(f"spool/{name}" for name in self.names)):
            (self.base / folder).mkdir(parents=True)
        self.base.chmod(0o755)  # munged refuses a socket that some users cannot reach
        key = self.base / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        controller, *ports = _ports(1 + len(self.names), self._claim)
        host = socket.gethostname().split(".")[0]
        nodes = "\n".join(
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} "
            f"CPUs={self._cpus} RealMemory=64000 State=UNKNOWN"
            f"{f' Gres={self._resources}' if self._resources else ''}"
            for name, port in zip(self.names, ports, strict=True)
        )
        first = int(time.time()) % 500_000 * 100 + 1
        values = {"host": host, "base": self.base, "controller": controller, "first": first}
        conf = _CONF.format(nodes=nodes, **values) + self._conf
        if "GresTypes=" in conf:  # it must stand before the nodes
            types = next(line for line in conf.splitlines() if line.startswith("GresTypes="))
            conf = f"{types}\n{conf.replace(types, '')}"
        (self.base / "slurm.conf").write_text(conf)
        if self._gres:
            (self.base / "gres.conf").write_text(self._gres.format(base=self.base))
            for number in range(8):
                (self.base / f"device{number}").touch()
        files = {"key-file": "munge.key", "socket": "munge.sock", "pid-file": "munged.pid"}
        files |= {"seed-file": "munge.seed", "log-file": "log/munged.log"}
        flags = (f"--{k}={self.base / v}" for k, v in files.items())
        self._spawn("munged", "munged", "-F", *flags)
        _wait((self.base / "munge.sock").exists, 60, "munged")
        self._spawn("slurmctld", "slurmctld", "-D", "-i")
        # A slurmd that finds no controller tries again only after seconds.
        _wait(lambda: _answers(controller), 60, "slurmctld")
        for name in self.names:
            self._boot(name)
        for name in self.names:
            self._ready(name)

    def _boot(self, name: str) -> None:
        # With mounts of its own.
        self._spawn(name, "unshare", "--mount", "--propagation=private", "slurmd", "-D", "-N", name)

    def _in_node(self, name: str, *words: str) -> None:
        self.run("nsenter", f"--target={self._daemons[name].pid}", "--mount", *words)

    def _processes(self, *marks: str) -> list[int]:
        """What the cluster's daemons and jobs run: their environment names its slurm.conf.

        Args:
            marks: more that must be in the environment: NAME, or NAME=VALUE.
        """
        wanted = {m.encode() for m in (f"SLURM_CONF={self.base}/slurm.conf", *marks)}
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (folder / "environ").read_bytes().split(b"\0")
                if wanted <= {*words, *(word.split(b"=")[0] for word in words)}:
                    found.append(int(folder.name))
        return found

    def _cancel_all(self) -> None:
        self.run("scancel", "--user=root", check=False)
        _wait(lambda: not self.run("squeue", "-h", check=False).strip(), 120, "the last jobs")

    def _ready(self, name: str) -> None:
        bad = {"DOWN", "UNKNOWN", "NOT_RESPONDING"}
        what = f"node {name}; see {self.base / 'log'}"
        _wait(lambda: bad.isdisjoint(self.node(name).split("+")), 120, what)

    def _spawn(self, name: str, *words: str) -> None:
        with (self.base / "log" / "daemons.log").open("ab") as log:
            self._daemons[name] = subprocess.Popen(
                words,
                cwd=self.base,
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C in the tests is not for the daemons
                # slurmd's jobs inherit its hard limit: 180 MB a crash of torch.
                preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, 0)),
            )


def _ports(count: int, claim: socket.socket) -> list[int]:
    """Free ports that no other cluster takes while the claim is open."""
    for first in range(20_000, 30_000, 32):  # below those that the kernel gives to connections
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            for port in range(first, first + count):
                s = stack.enter_context(socket.socket())
                s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                s.bind(("127.0.0.1", port))
            claim.bind(f"\0minislurm-{first}")  # an abstract name: it goes when its process does
            return list(range(first, first + count))
    raise RuntimeError("no free ports")


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 0.2).close()
    except OSError:
        return False
    return True


def _stepd(pid: int) -> list[int]:
    """The slurmstepd that started a process, if one did."""
    with contextlib.suppress(OSError):
        parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        if Path(f"/proc/{parent}/comm").read_text() == "slurmstepd\n":
            return [parent]
    return []


def _kill(pids: Collection[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _wait(ready: Callable[[], bool], seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds} s for {what}")
        time.sleep(0.1)
