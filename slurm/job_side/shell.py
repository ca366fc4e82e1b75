"""The shell lines of a batch script around its Python: they also work where Python does not.

A node may lack the file system of the environment, the code or the runs. Every job that such a node
gets would fail there within a second, so it would get the next one, too. The shell says so in the
log and in the job's comment, which the prologue reads on the next node, and leaves the node out.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

_MOST = 3  # nodes; if they all lack something, the fault is not theirs
_MARK = "unfit:"

_LEAVE = """\
leave_node() {
  node=${SLURMD_NODENAME:-$(hostname)}
  echo "error: $node $1; the job leaves it out" >&2
  said=$(squeue -h -o %k -j "$SLURM_JOB_ID" | head -n 1)
  [ "$said" != "(null)" ] || said=
  said="$said MARK $node $1;"
  scontrol update JobId="$SLURM_JOB_ID" Comment="$said"
  [ "$(echo "$said" | grep -o MARK | wc -l)" -lt MOST ] || exit 127
  without=$(scontrol -o show job "$SLURM_JOB_ID" | sed -n 's/.* ExcNodeList=\\([^ ]*\\).*/\\1/p')
  [ "$without" != "(null)" ] || without=
  without=${without:+$without,}$node
  trap '' TERM
  if scontrol requeue "$SLURM_JOB_ID"; then
    scontrol update JobId="$SLURM_JOB_ID" ExcNodeList="$without"
    exit 75
  fi
  # Where nothing is requeued: the same script as a new job, which dependents wait for.
  old=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
  old=${old:-$SLURM_JOB_ID}
  array=${SLURM_ARRAY_TASK_ID:+--array=$SLURM_ARRAY_TASK_ID}
  unset ${!SLURM_ARRAY_*} SLURM_RESTART_COUNT
  new=$(sbatch --parsable --dependency= --exclude="$without" --comment="$said" $array "$0") || exit
  squeue -h -t PD -o '%i %E' | sed -E 's/\\([a-z]+\\)//g' | while read -r other waits; do
    changed=$(echo "$waits" | sed -E "s/:$old(,|\\$)/:$new\\1/g")
    [ "$changed" = "$waits" ] || scontrol update JobId="$other" Dependency="$changed"
  done
  exit 75
}"""


def look(python: str, code: Path, file: str) -> list[str]:
    """Return the lines, before the user's own, that leave a node where something is not there.

    Args:
        python: the interpreter's path.
        code: folder of the code.
        file: the job's file, quoted for the shell; it may contain variables.
    """
    needed = f"{shlex.quote(python)} {shlex.quote(str(code / 'slurm'))} {file}"
    return [
        *_LEAVE.replace("MARK", _MARK).replace("MOST", str(_MOST)).splitlines(),
        f'for path in {needed}; do [ -e "$path" ] || leave_node "does not see $path"; done',
    ]


def begin(python: str, file: str) -> list[str]:
    """Return the lines that start an attempt, or leave a node where Python does not."""
    interpreter = shlex.quote(python)
    return [
        f"variables=$({interpreter} -m slurm.job_side.prologue {file}); code=$?",
        f'[ -n "$variables" ] || leave_node "cannot run "{interpreter}" (see the log)"',
        "[ $code = 0 ] || exit $code",
        'eval "$variables"',
    ]


def phases(python: str) -> list[str]:
    """Return the function that runs a phase of a job that several share, each in a subshell.

    A phase that fails lets the next one start, whose prologue knows whether it needs that one. When
    a phase is requeued or ended by SLURM, the job ends, and those that have ended are skipped next
    time.
    """
    interpreter = shlex.quote(python)
    return [
        "failed=0",
        "run_phase() {",
        '  (trap : TERM; one_phase "$@"); code=$?',
        "  [ $code -le 1 ] || exit $code",
        "  [ $code = 0 ] || failed=1",
        "}",
        "one_phase() {",
        "  file=$1; shift; settled=",
        *(f"  {line}" for line in begin(python, '"$file"')),
        '  [ -z "$settled" ] || exit "$settled"',
        '  srun "$@"',
        "  code=$?; trap '' TERM",
        f'  {interpreter} -m slurm.job_side.epilogue "$file" $code',
        "}",
    ]


def unfit_nodes(comment: str) -> dict[str, str]:
    """Return what the shell said in a job's comment, by node."""
    return {
        node: f"{node} {problem}"
        for node, problem in re.findall(rf"{_MARK} (\S+) (.*?);(?= {_MARK}|$)", comment)
    }
