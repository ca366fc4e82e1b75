"""What stands on the command line beside the chain and the cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from lensdist.config import load
from lensdist.config.reader import read_plain
from lensdist.errors import UserError
from slurm.config.chain import Chain
from slurm.config.cluster import Cluster, breaks_lines

# What a folder that jobs run in cannot be called, whatever the quoting.
_SIGNS = {
    "%": "SLURM gives % in names of files a meaning",
    "\\": "SLURM gives \\ in names of files a meaning",
    ":": "in PYTHONPATH a colon ends the name of a folder",
}


@dataclass(frozen=True)
class Request:
    """The words of the command line, sorted.

    Attributes:
        chain: the chain, its `runs` replaced by `runs=FOLDER`.
        phases: those named, in the chain's order; all, where none is.
        cluster: `cluster.key=value`, as `key=value`.
        settings: `key=value` for every training phase, `PHASE.key=value` for one.
    """

    chain: Chain
    phases: tuple[str, ...]
    cluster: tuple[str, ...]
    settings: tuple[str, ...]

    @property
    def runs(self) -> Path:
        return self.chain.runs.absolute()


def read_request(chain_file: Path, words: Sequence[str]) -> Request:
    """Read the chain, and sort the words.

    Raises:
        UserError: the chain is wrong, or has no phase of a name.
    """
    names = phase_names(words)
    settings = [w for w in words if w not in names]
    runs = [s for s in settings if s.startswith("runs=")]
    cluster = [s for s in settings if s.startswith("cluster.")]
    kinds = _kinds(chain_file)
    inner = {s: _inner(s, kinds) for s in settings if _inner(s, kinds)}
    chain = load(chain_file, [*runs, *filter(None, inner.values())], schema=Chain)
    errors = settings_of_nothing(chain, settings)
    runs_at = str(chain.runs.absolute())
    for sign, meaning in _SIGNS.items():
        if sign in runs_at:
            errors.append(f"runs={runs_at}: {meaning}; rename it")
    if breaks_lines(runs_at):
        errors.append(f"runs={runs_at!r}: holds a control character; rename it")
    for name in names:
        if name.partition("@")[0] not in chain.phases:
            near = get_close_matches(name, chain.phases, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(chain.phases)}"
            errors.append(f"{chain_file} has no phase {name!r}; {hint}")
    if errors:
        raise UserError("\n".join(errors))
    used = {*runs, *cluster, *inner}
    return Request(
        chain,
        tuple(name for name in chain.phases if not names or name in names),
        tuple(s.removeprefix("cluster.") for s in cluster),
        tuple(s for s in settings if s not in used),
    )


def settings_of_nothing(chain: Chain, settings: Sequence[str]) -> list[str]:
    """Mistakes: settings of phases that have none on the command line."""
    return [
        f"{setting}: {name} {chain.phases[name].kind}s, and takes no settings; change the chain"
        for setting in settings
        if (name := setting.partition("=")[0].partition(".")[0]) in chain.phases
        and chain.phases[name].kind in ("evaluate", "report")
    ]


def phase_names(words: Sequence[str]) -> list[str]:
    """Those of the words that name a phase, or a point of a sweep: `finetune@seed=1`."""
    return [w for w in words if "=" not in w.partition("@")[0]]


def read_cluster(file: Path, words: Sequence[str], *more: str) -> Cluster:
    """Read the cluster, with what the command line and the phase say of it.

    Raises:
        UserError: it is wrong.
    """
    given = [w.removeprefix("cluster.") for w in words if w.startswith("cluster.")]
    return load(file, [*given, *more], schema=Cluster)


def _inner(setting: str, kinds: Mapping[str, str]) -> str | None:
    """`images.n_per_class=9` of a phase that simulates is a key of the chain's own file."""
    phase, dot, rest = setting.partition("=")[0].partition(".")
    if not dot or phase not in kinds:
        return None
    return f"phases.{phase}.{kinds[phase]}.{rest}={setting.partition('=')[2]}"


def _kinds(chain_file: Path) -> dict[str, str]:
    """Phases that have their settings in the chain's file; what is wrong with it is told later."""
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
