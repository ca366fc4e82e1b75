"""Train the runs of a table, a few at a time, each started as a user would."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.settings import Table
from lensdist.config import load
from lensdist.config.differences import unmet
from lensdist.config.schema import schema_of
from lensdist.phases import COMPLETE, completed
from lensdist.train import add_arguments
from lensdist.utils.errors import EXIT_DONE, EXIT_REQUEUE, RunError, UserError

LOGITS = Path("eval", "test-logits.npy")
IMAGE_SCORES = Path("eval", "test-images.safetensors")

_leaving = False  # in a worker process: whether it was told to stop


class StoppedError(Exception):
    """A run was told to stop and has saved; the same command continues."""


@dataclass(frozen=True)
class Job:
    """A run to train, and the set to test it on."""

    run: Path
    argv: tuple[str, ...]
    """Arguments of `lensdist train`."""
    log: Path
    """File for its messages."""
    test: Path | None = None
    """A packed set whose test split the run is tested on afterwards, or None.

    Classes are written to `run / LOGITS`; for pairs, scores of each image to `run / IMAGE_SCORES`.
    """

    @property
    def record(self) -> dict[str, Any]:
        """The content of `COMPLETE.json`; an error is raised if the run's files were altered."""
        found = completed(self.run)
        assert found is not None
        return found

    @property
    def counts(self) -> dict[str, int]:
        """The images that trained the run's weights and that chose them, for a row of a table."""
        images = self.record["images"]
        return {"trained_on": images["train"], "chosen_on": images["choose"]}

    @property
    def logits(self) -> Tensor:
        """Logits (N, classes) of the test images; altered files of the run raise an error."""
        assert self.record
        return torch.from_numpy(np.load(self.run / LOGITS, allow_pickle=False))

    @property
    def done(self) -> bool:
        """Whether nothing is left to do; checked again, by hash, when the run is used."""
        tested = (self.run / LOGITS).exists() or (self.run / IMAGE_SCORES).exists()
        return (self.run / COMPLETE).exists() and (self.test is None or tested)


def job(
    cfg: Table, preset: str, folder: str, name: str, *settings: str, data: Path | None = None,
    test: bool = False,
) -> Job:  # fmt: skip
    """Describe a run of a table.

    Args:
        cfg: the table's settings.
        preset: in `cfg.configs`.
        folder: in the table's folders of runs and logs; "" for none.
        name: of the run; also that of its folder and log, without commas and spaces.
        settings: on top of the preset and of `cfg.overrides`.
        data: the packed set; None: the run simulates its own.
        test: whether the run is tested on the set's test split.
    """
    run = cfg.out / "runs" / folder / name.lower().replace(",", "").replace(" ", "-")
    words = (*cfg.overrides, *settings, *((f"data.path={data}",) if data else ()))
    argv = (f"--config={cfg.configs / preset}", *words, f"run.dir={run}")
    return Job(run, argv, cfg.out / "logs" / folder / f"{run.name}.log", data if test else None)


def check_presets(cfg: Table, presets: Iterable[str]) -> None:
    """Check that presets exist.

    Raises:
        UserError: one does not.
    """
    for preset in presets:
        if not (cfg.configs / preset).is_file():
            raise UserError(f"{cfg.configs / preset} does not exist; give --configs of a checkout")


def notes(cfg: Table) -> list[str]:
    """Return notes that apply to every table."""
    return [
        f"Seconds are since a run's last start, with {cfg.jobs} at a time on this machine.",
        *([f"Settings of all runs: {' '.join(cfg.overrides)}."] if cfg.overrides else []),
    ]


def run_all(jobs: Sequence[Job], workers: int, what: str) -> None:
    """Do the jobs that are not done yet, `workers` at a time.

    Raises:
        UserError: a finished run has other settings than its job.
        StoppedError: a run was told to stop and has saved.
        RunError: a run failed; the others that had begun were finished.
    """
    for job in jobs:
        _refuse_other_settings(job)
    todo = [job for job in jobs if not job.done]
    if not todo:
        return
    start = time.monotonic()
    # The workers' torch reads it when it starts: more threads than cores are slower than one each.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
    with (
        ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool,
        _passing_on_signals(pool),
    ):
        futures = {pool.submit(_do, job): job for job in todo}
        for count, future in enumerate(as_completed(futures), 1):
            job = futures[future]
            try:
                code = future.result()
            except CancelledError:
                raise StoppedError from None
            except BrokenProcessPool as e:  # stopped before it had begun, or killed
                raise RunError(f"{job.run} was killed; give the same command to continue") from e
            if code != EXIT_DONE:
                pool.shutdown(cancel_futures=True)
                if code == EXIT_REQUEUE:
                    raise StoppedError
                raise RunError(f"{job.run} failed ({code}): {_last_line(job.log)}")
            left = (time.monotonic() - start) / count * (len(todo) - count)
            skipped = len(jobs) - len(todo)
            print(
                f"{what}: {count + skipped}/{len(jobs)} runs, {job.run.name} done, "
                f"about {left / 60:.0f} min left",
                file=sys.stderr,
                flush=True,
            )


def _refuse_other_settings(job: Job) -> None:
    record = completed(job.run)
    if record is None:
        return
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    args = parser.parse_args(job.argv)
    wanted = load(args.config, args.words, schema=schema_of).model_dump(mode="json")
    changed = unmet(record["config"], wanted)
    if changed:
        raise UserError(
            f"{job.run} was finished with other settings ({changed[0]}); give another --out"
        )


@contextlib.contextmanager
def _passing_on_signals(pool: ProcessPoolExecutor) -> Iterator[None]:
    """Pass a stop request on to the runs, which save; otherwise they would continue."""

    def stop(number: int, frame: FrameType | None) -> None:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in active_children():
            child.terminate()  # SIGTERM: the run saves its state and exits

    if threading.current_thread() is not threading.main_thread():  # only it may have handlers
        yield
        return
    asked = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP)
    numbers = [n for n in asked if signal.getsignal(n) is not signal.SIG_IGN]  # not under nohup
    before = [signal.signal(number, stop) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _do(job: Job) -> int:
    """Train in a worker process, then test the network on the test split."""
    global _leaving
    parent = parent_process()
    if _leaving or (parent is not None and not parent.is_alive()):
        return EXIT_REQUEUE  # the pool hands out a job ahead: it must not begin after a stop
    from accelerate.state import AcceleratorState

    from lensdist.train import main

    job.log.parent.mkdir(parents=True, exist_ok=True)
    with job.log.open("a") as log, contextlib.redirect_stderr(log):
        code = main(job.argv)
        if code == EXIT_DONE and job.test is not None:
            AcceleratorState._reset_state()  # the test's precision is not training's
            _test(job.run, job.test)
    _leaving = code == EXIT_REQUEUE
    return code


def _test(run: Path, data: Path) -> None:
    from lensdist.data.config import DataConfig
    from lensdist.data.subset import View
    from lensdist.evaluate.run import open_subject
    from lensdist.metrics.images import write_images
    from lensdist.utils.files import write_atomic

    subject = open_subject(run, data)
    if subject.task.pairs:
        view = View(subject.packed, "test", subject.data, 0, subject.world.device)
        write_images(run / IMAGE_SCORES, subject.outputs(view, 64))
        return
    view = View(subject.packed, "test", DataConfig(path=data), 0, torch.device("cpu"))
    images, file = view.gather(np.arange(len(view)))["image"].numpy(), io.BytesIO()
    np.save(file, subject.model.predict(images)["logits"])
    write_atomic(run / LOGITS, file.getvalue())


def _last_line(log: Path) -> str:
    lines = log.read_text().strip().splitlines() if log.exists() else []
    return lines[-1] if lines else "its log is empty"
