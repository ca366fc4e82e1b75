"""Where a chain and a cluster come from: a file, the name of one, or a single configuration."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from lensdist.config.presets import FOLDER, preset_file, presets
from lensdist.utils.errors import UserError
from slurm.config.chain import TAKEN

CHAIN = (FOLDER / "chains" / "vi_a.yaml").resolve()
CLUSTER = (FOLDER / "clusters" / "local.yaml").resolve()
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")


@dataclass(frozen=True)
class Source:
    """The source of a chain.

    Attributes:
        file: the chain's file; None: the chain is `settings` alone.
        settings: `key=value`, over the file.
        words: the words that name it on the command line.
    """

    file: Path | None
    settings: tuple[str, ...] = ()
    words: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """The folder that the paths of configurations are relative to."""
        return Path.cwd() if self.file is None else self.file.parent

    def __str__(self) -> str:
        """Return its name in messages."""
        return "the chain" if self.file is None else str(self.file)


def chain_source(
    chain: str | None, config: Path | None, words: Sequence[str]
) -> tuple[Source | None, list[str]]:
    """Return what a command line names, if it names a chain; and the words that are left.

    Args:
        chain: `--chain`: a file, or the name of a chain that comes with lensdist.
        config: `--config`: one training configuration.
        words: the other arguments; one with a slash is a preset, such as `common/best`.

    Raises:
        UserError: several are named, or there is no such preset.
    """
    named = [word for word in words if "/" in word and "=" not in word]
    options = {"--chain": chain, "--config": config}
    given = [f"{name} {value}" for name, value in options.items() if value is not None] + named
    if len(given) > 1:
        raise UserError(
            f"give one chain, one preset or one --config, not {', '.join(given)}; "
            "quote a path with blanks"
        )
    rest = [word for word in words if word not in named]
    if named and named[0].endswith((".yaml", ".yml")):
        raise UserError(f"{named[0]} is a file: give it as --config or --chain {named[0]}")
    if named:
        try:
            file = preset_file(named[0])
        except UserError as e:
            paths = any("/" in word for word in rest)  # `data.path=/my images/packed`
            raise UserError(f"{e}, or quote a path with blanks" if paths else str(e)) from e
        return _single(file, named[0].replace("/", "-"), named), rest
    if config is not None:
        return _single(config, config.stem, ["--config", str(config)]), rest
    if chain is not None:
        return Source(_named(chain, "chains"), words=("--chain", chain)), rest
    return None, rest


def cluster_file(given: str | None, *, submits: bool) -> Path:
    """Return the cluster's file: `given`, a file or the name of one that comes with lensdist.

    Args:
        given: None: this machine.
        submits: whether phases will run; then not on the login node of a cluster without a word.

    Raises:
        UserError: there is no such file, or none is given on a machine that can send jobs to SLURM.
    """
    if given is not None:
        return there(_named(given, "clusters"), "clusters")
    if submits and shutil.which("sbatch") is not None:
        raise UserError(
            "this machine can send jobs to SLURM, and no cluster is given: type --cluster FILE "
            f"(a copy of {FOLDER / 'clusters' / 'slurm-gpu.yaml'}), or --cluster local.yaml to "
            "run here on purpose"
        )
    return CLUSTER


def there(file: Path, folder: str) -> Path:
    """Return a file that was named on the command line.

    Args:
        folder: the folder of the files of its kind that come with lensdist.

    Raises:
        UserError: it does not exist; the message has the names that do.
    """
    if file.exists():
        return file
    shipped = sorted(one.stem for one in (FOLDER / folder).glob("*.yaml"))
    beside = {one.stem: str(one) for one in sorted(file.parent.glob("*.y*ml"))}
    near = get_close_matches(file.stem, [*beside, *shipped], n=1)
    hint = f"did you mean {beside.get(near[0], near[0])!r}? If not, " if near else ""
    raise UserError(f"{file}: no such file; {hint}these come with lensdist: {', '.join(shipped)}")


def train_file(folder: Path, train: Path) -> Path:
    """Return the configuration of a phase: a file relative to `folder`, or else a preset's.

    Raises:
        UserError: it has the form of a preset's name, and there is no such preset.
    """
    file, name = folder / train, str(train).removesuffix(".yaml")
    if file.exists():
        return file
    known = presets()
    tasks = {one.partition("/")[0] for one in known}
    misspelt = str(train.parent) in tasks and not file.parent.exists()
    return preset_file(name) if name in known or misspelt else file


def _single(config: Path, name: str, words: Sequence[str]) -> Source:
    """Return the source of a chain of one phase that trains."""
    name = _UNSAFE.sub("-", name).strip("-_") or "run"
    phase = _UNSAFE.sub("-", config.stem).strip("-_")
    if not phase[:1].isalpha() or phase in TAKEN:
        phase = f"run-{phase}".rstrip("-")
    train = json.dumps(str(config.absolute()))  # in quotes: a name may look like a number
    settings = (f"name={json.dumps(name)}", f"runs={json.dumps(f'runs/{name}')}")
    return Source(None, (*settings, f"phases.{phase}.train={train}"), tuple(words))


def _named(given: str, folder: str) -> Path:
    """Return a file; if there is none, the one of that name that comes with lensdist."""
    own = FOLDER / folder / Path(given).with_suffix(".yaml").name
    is_name = Path(given).name == given
    return own.resolve() if is_name and own.is_file() and not Path(given).exists() else Path(given)
