"""The arguments of the command line: names of phases and settings."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from lensdist.config import load
from lensdist.utils.errors import UserError
from lensdist.utils.yaml_reader import read_plain
from slurm.config.chain import Chain
from slurm.config.cluster import Cluster, breaks_lines
from slurm.config.source import Source
from slurm.register import STATE

# Characters that the folder of the runs cannot have, whatever the quoting.
_FORBIDDEN = {
    "%": "SLURM replaces % in names of files",
    "\\": "SLURM replaces \\ in names of files",
    ":": "in PYTHONPATH a colon separates folders",
}
_PHASE_CLUSTER = re.compile(r"[A-Za-z0-9_-]+\.cluster\.")


@dataclass(frozen=True)
class Request:
    """The sorted arguments.

    Attributes:
        chain: the chain, with `runs` from `runs=FOLDER`.
        phases: the named phases in the chain's order; all, if none is named.
        cluster: settings of the cluster, as `cluster.key=value`.
        resources: settings of the cluster for one phase, as `key=value`, by phase.
        settings: `key=value` for every training phase, `PHASE.key=value` for one.
    """

    chain: Chain
    phases: tuple[str, ...]
    cluster: tuple[str, ...]
    resources: dict[str, tuple[str, ...]]
    settings: tuple[str, ...]

    @functools.cached_property
    def runs(self) -> Path:
        """The folder of the runs."""
        return self.chain.runs.absolute()

    @property
    def state(self) -> Path:
        """The launcher's own folder."""
        return self.runs / STATE


def read_request(source: Source | Path, arguments: Sequence[str]) -> Request:
    """Read the chain, and sort the arguments.

    Args:
        source: the chain's source, or its file.

    Raises:
        UserError: the chain is invalid, or an argument does not fit it.
    """
    source = Source(source) if isinstance(source, Path) else source
    names = phase_names(arguments)
    settings = [a for a in arguments if a not in names]
    runs = [s for s in settings if s.startswith("runs=")]
    cluster = [s for s in settings if s.startswith("cluster.")]
    kinds = _phases_with_settings(source)
    of_chain = {}  # `images.n_per_class=9` sets a key of the chain's own file
    resources: dict[str, tuple[str, ...]] = {}  # `images.cluster.partition=cpu`
    for setting in settings:
        phase, dot, rest = setting.partition("=")[0].partition(".")
        if _PHASE_CLUSTER.match(setting):
            own = setting.removeprefix(f"{phase}.cluster.")
            resources[phase] = (*resources.get(phase, ()), own)
        elif dot and phase in kinds:
            value = setting.partition("=")[2]
            of_chain[setting] = f"phases.{phase}.{kinds[phase]}.{rest}={value}"
    chain = load(source.file, [*source.settings, *runs, *of_chain.values()], schema=Chain)
    settings = [s for s in settings if not _PHASE_CLUSTER.match(s)]
    errors = unused_settings(chain, settings)
    runs_at = str(chain.runs.absolute())
    for character, reason in _FORBIDDEN.items():
        if character in runs_at:
            errors.append(f"runs={runs_at}: {reason}; rename it")
    if breaks_lines(runs_at):
        errors.append(f"runs={runs_at!r}: has a control character; rename it")
    for name in [*names, *resources]:
        if name.partition("@")[0] not in chain.phases:
            near = get_close_matches(name, chain.phases, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(chain.phases)}"
            errors.append(f"{source} has no phase {name!r}; {hint}")
    if errors:
        raise UserError("\n".join(errors))
    used = {*runs, *cluster, *of_chain}
    return Request(
        chain,
        tuple(name for name in chain.phases if not names or name in names),
        tuple(cluster),
        resources,
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


def _phases_with_settings(source: Source) -> dict[str, str]:
    """Return the phases whose settings stand in the chain's file, and their kind.

    Errors in the file are reported later, by `load`.
    """
    try:
        phases = read_plain(source.file)["phases"] if source.file else {}
        return {
            name: kind
            for name, phase in phases.items()
            for kind in ("simulate", "pack")
            if isinstance(phase, dict) and kind in phase
        }
    except (UserError, TypeError, KeyError, AttributeError):
        return {}
