"""Presets: the configurations that come with lensdist, by name, such as `mae/best` (torch-free)."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

import lensdist
from lensdist.utils.errors import UserError

# In a clone this is a link to `configs/`, in a wheel a copy of it.
FOLDER = Path(lensdist.__file__).parent / "presets"
MORE = ("find",)
"""Folders of presets that use another folder's task."""


def presets() -> list[str]:
    """Return the names of all presets, such as `mae/best`, in alphabetical order."""
    from lensdist.tasks.registry import built_in

    return sorted(
        f"{folder}/{file.stem}"
        for folder in (*built_in(), *MORE)
        for file in (FOLDER / folder).glob("*.yaml")
    )


def preset_file(name: str) -> Path:
    """Return the file of a preset, relative to the current folder if it is below that.

    Raises:
        UserError: there is no such preset.
    """
    file = (FOLDER / f"{name}.yaml").resolve()
    if not file.is_file():
        if of_task := [one for one in presets() if one.startswith(f"{name}/")]:
            raise UserError(f"{name} is a task; give one of its presets: {', '.join(of_task)}")
        near = get_close_matches(name, presets(), n=1, cutoff=0.4)
        also = f"did you mean {near[0]}? If not, " if near else ""
        raise UserError(f"unknown preset {name!r}; {also}type `lensdist presets` for a list")
    here = Path.cwd()
    return file.relative_to(here) if file.is_relative_to(here) else file


def chosen(config: Path | None, words: list[str]) -> tuple[Path, list[str]]:
    """Return the file of the preset or of `--config`, and the settings of a command line.

    `words` are the other arguments: at most one preset, and `key=value`.

    Raises:
        UserError: there is no such preset, or not exactly one configuration is named.
    """
    names = [word for word in words if "=" not in word]
    settings = [word for word in words if "=" in word]
    if config is not None and not names:
        if str(config) in presets() and not config.exists():
            raise UserError(f"{config} is a preset, not a file: give it without --config")
        return config, settings
    if config is None and len(names) == 1:
        if names[0].endswith((".yaml", ".yml")):
            raise UserError(f"{names[0]} is a file: give it as --config {names[0]}")
        return preset_file(names[0]), settings
    if config is None and not names:
        raise UserError(
            "give a preset, such as `lensdist train mae/debug`, or --config FILE; `lensdist "
            "presets` lists them"
        )
    given = ", ".join([*([f"--config {config}"] if config else []), *names])
    raise UserError(f"give one configuration, not {given}; settings are written key=value")
