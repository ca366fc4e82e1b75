"""A real SLURM of one controller and a few nodes in a folder, for tests (Linux, root).

All nodes are this machine. They are named 127.0.0.1, 127.0.0.2, …: names that resolve without
touching /etc/hosts. Debian's packages: `make slurm-deps`.
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
from collections.abc import Callable
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol")

_CONF = """\
ClusterName=lensdist
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# cred_expire is also the delay before a requeued job starts again (default 120 s); below 5 refused
AuthInfo=socket={base}/munge.sock,cred_expire=5
StateSaveLocation={base}/state
SlurmdSpoolDir={base}/spool/%n
SlurmctldPidFile={base}/slurmctld.pid
SlurmdPidFile={base}/slurmd.%n.pid
SlurmctldLogFile={base}/log/slurmctld.log
SlurmdLogFile={base}/log/slurmd.%n.log
# no cgroups, no systemd, no pmix, no mail. As with cgroups, and unlike linuxproc, signals reach a
# step's direct tasks only: what they start in sessions of their own hears of none
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
PropagateResourceLimits=NONE
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
# the declared cores are believed: a test may have more processes than the machine has cores
SlurmdParameters=config_overrides
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmctldTimeout=10
SlurmdTimeout=30
MessageTimeout=10
BatchStartTimeout=20
KillWait=5
MinJobAge=86400
# a new cluster must not hand out the ids of the last one
FirstJobId={first}
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=10000,bf_interval=1
PriorityType=priority/basic
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=10 State=UP
"""


def missing() -> list[str]:
    """Programs that a cluster needs and this machine lacks."""
    return [name for name in PROGRAMS if shutil.which(name) is None]


class MiniSlurm:
    """A cluster; use it as a context.

    Args:
        base: an empty folder for its state and logs.
        nodes: how many.
        cpus: cores that each node declares.
    """

    def __init__(self, base: Path, nodes: int = 2, cpus: int = 4) -> None:
        self.base = base
        self.names = [f"127.0.0.{i}" for i in range(1, nodes + 1)]
        self._cpus = cpus
        self._daemons: list[subprocess.Popen[bytes]] = []
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
            self.run("scancel", "--user=root", check=False)
            _wait(self._no_jobs, 20, "the last jobs", fail=False)
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in reversed(self._daemons):
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        self._daemons.clear()
        for pid in self._left():  # pgid loses what a killed launcher leaves; a real node would not
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def run(self, *words: str, check: bool = True) -> str:
        """A client command's output."""
        env = {**os.environ, **self.environment}
        done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(words)}: {done.stderr}")
        return done.stdout

    def job(self, number: str) -> dict[str, str]:
        """What SLURM knows of a job: JobState, NodeList, ExitCode, …"""
        words = self.run("scontrol", "-o", "show", "job", number).split()
        return dict(w.split("=", 1) for w in words if "=" in w)

    def finished(self, number: str, timeout: float) -> str:
        """Wait for a job's end; the state that it ended in."""
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
        _wait(lambda: self.job(number)["JobState"] in over, timeout, f"job {number}")
        return self.job(number)["JobState"]

    def _start(self) -> None:
        for folder in ("state", "log", *(f"spool/{name}" for name in self.names)):
            (self.base / folder).mkdir(parents=True)
        self.base.chmod(0o755)  # munged refuses a socket that some users cannot reach
        key = self.base / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        controller, *ports = _free_ports(1 + len(self.names))
        host = socket.gethostname().split(".")[0]
        nodes = "\n".join(
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} "
            f"CPUs={self._cpus} RealMemory=64000 State=UNKNOWN"
            for name, port in zip(self.names, ports, strict=True)
        )
        conf = _CONF.format(
            host=host,
            base=self.base,
            controller=controller,
            nodes=nodes,
            first=int(time.time()) % 500_000 * 100 + 1,
        )
        (self.base / "slurm.conf").write_text(conf)
        files = {"key-file": "munge.key", "socket": "munge.sock", "pid-file": "munged.pid"}
        files |= {"seed-file": "munge.seed", "log-file": "log/munged.log"}
        self._spawn("munged", "-F", *(f"--{k}={self.base / v}" for k, v in files.items()))
        _wait((self.base / "munge.sock").exists, 10, "munged")
        self._spawn("slurmctld", "-D", "-i")
        # A slurmd that finds no controller tries again only after seconds.
        _wait(lambda: _answers(controller), 20, "slurmctld")
        for name in self.names:
            self._spawn("slurmd", "-D", "-N", name)
        _wait(self._idle, 30, f"idle nodes; see {self.base / 'log'}")

    def _left(self) -> list[int]:
        """Processes of this cluster's jobs: their environment names its own slurm.conf."""
        mark = f"SLURM_CONF={self.base}/slurm.conf".encode()
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
        return found

    def _no_jobs(self) -> bool:
        return not self.run("squeue", "-h", check=False).strip()

    def _idle(self) -> bool:
        states = self.run("sinfo", "-h", "-N", "-o", "%T", check=False).split()
        return states == ["idle"] * len(self.names)

    def _spawn(self, *words: str) -> None:
        with (self.base / "log" / "daemons.log").open("ab") as log:
            self._daemons.append(
                subprocess.Popen(
                    words,
                    cwd=self.base,
                    env={**os.environ, **self.environment},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C in the tests is not for the daemons
                    preexec_fn=_no_core_files,
                )
            )


def _no_core_files() -> None:
    # slurmd raises its soft limit to the hard one, and jobs inherit that: 180 MB a crash of torch.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 0.2).close()
    except OSError:
        return False
    return True


def _wait(ready: Callable[[], bool], seconds: float, what: str, *, fail: bool = True) -> None:
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            if fail:
                raise TimeoutError(f"waited {seconds} s for {what}")
            return
        time.sleep(0.1)
