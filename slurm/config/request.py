"""The arguments of the command line: names of phases and settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from lensdist.config import load
from lensdist.utils.errors import UserError
from lensdist.utils.yaml_reader import read_plain
from slurm.config.chain import Chain
from slurm.config.cluster import Cluster, breaks_lines

_STATE = ".submit"
# Characters that the folder of the runs cannot have, whatever the quoting.
_FORBIDDEN = {
    "%": "SLURM replaces % in names of files",
    "\\": "SLURM replaces \\ in names of files",
    ":": "in PYTHONPATH a colon separates folders",
}


@dataclass(frozen=True)
class Request:
    """The sorted arguments.

    Attributes:
        chain: the chain, with `runs` from `runs=FOLDER`.
        phases: the named phases in the chain's order; all, if none is named.
        cluster: settings of the cluster, as `cluster.key=value`.
        settings: `key=value` for every training phase, `PHASE.key=value` for one.
    """

    chain: Chain
    phases: tuple[str, ...]
    cluster: tuple[str, ...]
    settings: tuple[str, ...]

    @property
    def runs(self) -> Path:
        """The folder of the runs."""
        return self.chain.runs.absolute()

    @property
    def state(self) -> Path:
        """The launcher's own folder."""
        return self.runs / _STATE


def read_request(chain_file: Path, arguments: Sequence[str]) -> Request:
    """Read the chain, and sort the arguments.

    Raises:
        UserError: the chain is invalid, or an argument does not fit it.
    """
    names = phase_names(arguments)
    settings = [a for a in arguments if a not in names]
    runs = [s for s in settings if s.startswith("runs=")]
    cluster = [s for s in settings if s.startswith("cluster.")]
    kinds = _phases_with_settings(chain_file)
    of_chain = {}  # `images.n_per_class=9` sets a key of the chain's own file
    for setting in settings:
        phase, dot, rest = setting.partition("=")[0].partition(".")
        if dot and phase in kinds:
            value = setting.partition("=")[2]
            of_chain[setting] = f"phases.{phase}.{kinds[phase]}.{rest}={value}"
    chain = load(chain_file, [*runs, *of_chain.values()], schema=Chain)
    errors = unused_settings(chain, settings)
    runs_at = str(chain.runs.absolute())
    for character, reason in _FORBIDDEN.items():
        if character in runs_at:
            errors.append(f"runs={runs_at}: {reason}; rename it")
    if breaks_lines(runs_at):
        errors.append(f"runs={runs_at!r}: has a control character; rename it")
    for name in names:
        if name.partition("@")[0] not in chain.phases:
            near = get_close_matches(name, chain.phases, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(chain.phases)}"
            errors.append(f"{chain_file} has no phase {name!r}; {hint}")
    if errors:
        raise UserError("\n".join(errors))
    used = {*runs, *cluster, *of_chain}
    return Request(
        chain,
        tuple(name for name in chain.phases if not names or name in names),
        tuple(cluster),
        tuple(s for s in settings if s not in used),
    )


def unused_settings(chain: Chain, settings: Sequence[str]) -> list[str]:
    """Return an error for each setting of a phase that has no settings."""
    errors = []
    for setting in settings:
        name = setting.partition("=")[0].partition(".")[0]
        if name in chain.phases and chain.phases[name].kind in ("evaluate", "report"):
            kind = chain.phases[name].kind
            errors.append(f"{setting}: a phase with `{kind}` has no settings; change the chain")
    return errors


def phase_names(arguments: Sequence[str]) -> list[str]:
    """Return the arguments that name a phase or a point of a sweep: `finetune@seed=1`."""
    return [a for a in arguments if "=" not in a.partition("@")[0]]


def read_cluster(file: Path, arguments: Sequence[str], *more: str) -> Cluster:
    """Read the cluster with the settings `cluster.key=value`, and more as `key=value`.

    Raises:
        UserError: it is invalid.
    """
    given = [a.removeprefix("cluster.") for a in arguments if a.startswith("cluster.")]
    return load(file, [*given, *more], schema=Cluster)


def _phases_with_settings(chain_file: Path) -> dict[str, str]:
    """Return the phases whose settings stand in the chain's file, and their kind.

    Errors in the file are reported later, by `load`.
    """
    try:
        phases = read_plain(chain_file)["phases"]
        return {
            name: kind
            for name, phase in phases.items()
            for kind in ("simulate", "pack")
            if isinstance(phase, dict) and kind in phase
        }
    except (UserError, TypeError, KeyError, AttributeError):
        return {}
