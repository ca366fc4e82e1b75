"""Hook of mkdocs: pages that are made from the README, `--help` and the changelog at each build."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from lensdist.cli import COMMANDS, main

ROOT = Path(__file__).resolve().parents[1]


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages."""
    pages = {
        "index.md": _from_root("README.md"),
        "contributing.md": _from_root("CONTRIBUTING.md"),
        "changelog.md": _from_root("CHANGELOG.md"),
        "command-line.md": _command_line(),
    }
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def _from_root(name: str) -> str:
    """Return a page of the repository's root, with links as they are from `docs/`."""
    text = (ROOT / name).read_text().replace("](docs/", "](")
    return text.replace("](CONTRIBUTING.md)", "](contributing.md)")


def _command_line() -> str:
    parts = ["# Command line\n\n`lensdist COMMAND --help` prints the same.\n"]
    for name, summary in COMMANDS.items():
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            main([name, "--help"])
        text = re.sub(r"\x1b\[[0-9;]*m", "", printed.getvalue())
        parts.append(f"## lensdist {name}\n\n{summary.capitalize()}.\n\n```text\n{text}```\n")
    return "\n".join(parts)
