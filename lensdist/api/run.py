"""Train from Python, by the code of `lensdist train`, and look at a run."""

from __future__ import annotations

import argparse
import json
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lensdist.api.model import Model, load
from lensdist.api.table import ABOUT, row_of
from lensdist.phases import completed
from lensdist.runs.fit import load_fitted
from lensdist.tracking import metrics_log
from lensdist.train import launch
from lensdist.utils.errors import EXIT_DONE, RunError
from lensdist.utils.logs import to_stderr


class Run:
    """A run's folder.

    Args:
        folder: of a run that has begun.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    @property
    def done(self) -> bool:
        """Whether the run is finished.

        Raises:
            UserError: it is, but one of its files was altered.
        """
        return completed(self.folder) is not None

    @property
    def row(self) -> dict[str, Any]:
        """The run's row of `read_runs`: what it is, and its scores by split."""
        return row_of(self.folder)

    @property
    def log(self) -> list[dict[str, Any]]:
        """The rows of `metrics.jsonl`, as in docs/metrics.md."""
        return [dict(row) for row in metrics_log.read(self.folder / "metrics.jsonl")]

    def model(self, device: str = "cpu") -> Model:
        """Load the model of a finished run; see `lensdist.load`."""
        return load(self.folder, device)

    def __repr__(self) -> str:
        row = self.row
        what = f"task {row.get('task')}, preset {row.get('preset')}"
        state = f"{row['steps']:,} steps" if row.get("steps") else "not finished"
        scores = [
            f"  {name:<26} {value:.4g}"
            for name, value in row.items()
            if isinstance(value, float) and name not in ABOUT
        ]
        return "\n".join([f"lensdist run {self.folder}: {what}, {state}", *scores])


def train(
    config: str | os.PathLike[str], *words: str, resume: str = "auto", **settings: Any
) -> Run:
    """Train one phase in this process, as `lensdist train` does, and return its run.

    A run that is finished, with these settings, is returned as it is; one that was stopped goes on.

    >>> run = lensdist.train("common/small", "train.epochs=20", data={"path": "packed"}, seed=1)
    >>> run.model().predict("new-images")

    Several processes need a launcher, as on the command line: under one, this ends the process.

    Args:
        config: a preset, such as `common/small`, or the path of a .yaml file.
        words: settings as on the command line, `key=value`.
        resume: as `--resume`.
        settings: settings by name; a section is a dict, or a name with `.` in it.

    Raises:
        UserError: bad configuration or input; nothing was started.
        RunError: training had begun and cannot continue, or was stopped on request and saved.
    """
    file = Path(config) if Path(config).suffix in (".yaml", ".yml") else None
    given = [*words, *_words(settings)]
    args = argparse.Namespace(
        config=file, words=given if file else [os.fspath(config), *given], resume=resume
    )
    folder = load_fitted(args.config, args.words).run.dir
    with to_stderr(), _handlers_kept():
        code = launch(args)
    if code != EXIT_DONE:
        raise RunError(f"{folder} was stopped on request and saved: call this again to go on")
    return Run(folder)


def _words(settings: Mapping[str, Any], above: str = "") -> Iterator[str]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _words(value, f"{above}{name}.")
        else:
            yield f"{above}{name}={json.dumps(value, default=os.fspath)}"


@contextmanager
def _handlers_kept() -> Iterator[None]:
    """Put the program's own signal handlers back, which a run replaces."""
    numbers = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
