"""How far a training run is, from its files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import median

from lensdist.config import load
from lensdist.config.schema import recorded_schema
from lensdist.tracking.metrics_log import read
from lensdist.utils.errors import UserError

_RECENT = 5  # rows of training that give the speed


@dataclass(frozen=True)
class Progress:
    """The progress of a training run.

    Attributes:
        step: of the last row of training.
        total: steps of the whole run; early stopping may end it sooner.
        seconds: time for the rest at the present speed, with validations; a later stage that trains
            more parameters is slower.
        score: name of the score that selects the best checkpoint.
        value: its last value.
    """

    step: int
    total: int
    seconds: float | None
    score: str
    value: float | None


def progress(run: Path) -> Progress | None:
    """Return how far a training run is; None before its first row of metrics."""
    try:
        config = load(run / "config.yaml", schema=recorded_schema)
    except UserError:  # it does not exist yet, or another version wrote it
        return None
    rows = read(run / "metrics.jsonl")
    train = [row for row in rows if row["kind"] == "train"]
    if not train:
        return None
    val = next((row for row in reversed(rows) if row["kind"] == "val"), {})
    step = train[-1]["step"]
    # The number of images is not known here, but the rows have step and epoch.
    per_epoch = max(1, round(step / train[-1]["epoch"]))
    total = config.train.max_steps or per_epoch * config.train.epochs
    seconds = None
    rates = [row["images_per_s"] for row in train[-_RECENT:] if row.get("images_per_s")]
    if rates:
        between = max(1, round(config.train.eval_every_epochs * per_epoch))
        pace = config.train.global_batch / median(rates) + (val.get("seconds") or 0) / between
        seconds = max(0, total - step) * pace
    score, _ = config.selects
    return Progress(step, total, seconds, score, val.get(score))
