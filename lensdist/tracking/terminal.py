"""A live display on a terminal of any width, drawn by rich. Only `progress` imports this."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TextIO, cast

from rich.columns import Columns
from rich.console import Console, Group
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.text import Text

from lensdist.utils.streams import Stream


class Display:
    """A bar, and figures in as many columns as fit.

    What is written to standard error meanwhile appears above it.

    Args:
        stream: a terminal.
    """

    def __init__(self, stream: TextIO) -> None:
        # rich ends the process when its reader has left; a `Stream` raises nothing.
        raw = stream.unescaped() if isinstance(stream, Stream) else Stream(stream, escapes=False)
        console = Console(file=cast(TextIO, raw), force_terminal=True)
        self._live = Live(console=console, auto_refresh=False, redirect_stdout=False)
        self._live.start()
        console.show_cursor(True)  # else a run that is killed leaves the shell without one
        sys.stderr = cast(
            TextIO, Stream(sys.stderr)
        )  # rich has put its own there; `stop` undoes it

    def update(self, share: float, figures: Sequence[str]) -> None:
        """Draw anew.

        Args:
            share: of the run that is done.
            figures: short texts.
        """
        texts = [Text(" ".join(figure.split())) for figure in figures]
        bar = Padding(ProgressBar(total=1.0, completed=share), 0)  # ends its line
        self._live.update(Group(bar, Columns(texts, padding=(0, 2))), refresh=True)

    def close(self) -> None:
        """Leave what was drawn last on the terminal."""
        self._live.stop()
