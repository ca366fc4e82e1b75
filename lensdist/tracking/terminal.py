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
    """A progress bar, and figures in as many columns as fit.

    Text written to standard error in the meantime appears above it.
    """

    def __init__(self, stream: TextIO) -> None:
        # rich ends the process if its reader has left; a `Stream` raises nothing.
        raw = stream.unescaped() if isinstance(stream, Stream) else Stream(stream, escapes=False)
        console = Console(file=cast(TextIO, raw), force_terminal=True)
        self._live = Live(console=console, auto_refresh=False, redirect_stdout=False)
        self._live.start()
        console.show_cursor(True)  # otherwise a killed run leaves the shell without a cursor
        # This replaces the stream that rich has set; `stop` undoes it.
        sys.stderr = cast(TextIO, Stream(sys.stderr))

    def update(self, share: float, figures: Sequence[str]) -> None:
        """Redraw the display: the part of the run that is done, and figures as short texts."""
        texts = [Text(" ".join(figure.split())) for figure in figures]
        bar = Padding(ProgressBar(total=1.0, completed=share), 0)  # ends its line
        self._live.update(Group(bar, Columns(texts, padding=(0, 2))), refresh=True)

    def close(self) -> None:
        """Stop the display; its last content stays on the terminal."""
        self._live.stop()
