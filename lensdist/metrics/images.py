"""Outputs of single images, kept beside the scores of a split, and runs compared by them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lensdist.metrics.seeds import paired_difference
from lensdist.utils.owners import temporary
from lensdist.utils.sealed import read_json, unsealed
from lensdist.utils.tensors import read_safetensors, write_safetensors

_MOST = 60  # pairs of runs: a table that a person reads


def write_images(path: Path, outputs: Mapping[str, Tensor]) -> Path:
    """Write (N, ...) tensors by name, completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = temporary(path)
    try:
        write_safetensors(beside, {name: value.contiguous() for name, value in outputs.items()})
        return beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def read_images(run: Path, split: str = "test") -> tuple[str, dict[str, Tensor]] | None:
    """Return the set's fingerprint and the outputs of each image; None if a run has none.

    Raises:
        OSError, ValueError: a file cannot be read, or is not the one that was scored.
    """
    path = run / "eval" / f"{split}.safetensors"
    if not path.exists():
        return None
    facts = unsealed(read_json(path.with_suffix(".json")))
    found = read_safetensors(path, path.stat().st_size, facts["images"])
    return facts["data"]["fingerprint"], found


def compared(
    runs: Sequence[tuple[str, Path, type[Any]]], split: str = "test"
) -> list[dict[str, Any]]:
    """Compare each two runs of a task on the images that both were scored on.

    Runs of one name are seeds of one setting, and are pooled.

    Args:
        runs: name, folder and task class.
        split: the split.

    Returns:
        A row for each two and each score: `a`, `b`, `score`, `difference` (a - b), `difference_ci`
        (95 %, over images and seeds), `n`, `seeds`.
    """
    scores: dict[str, list[tuple[Any, dict[str, Tensor]]]] = {}
    for name, run, task in runs:
        found = read_images(run, split)
        if found is not None and (each := task.each(found[1])):
            same = (task.name, found[0], tuple(found[1]["sample"].tolist()))
            scores.setdefault(name, []).append((same, each))
    rows = []
    for (a, of_a), (b, of_b) in combinations(scores.items(), 2):
        if len({same for same, _ in (*of_a, *of_b)}) > 1:
            continue  # other images, or another task
        seeds = min(len(of_a), len(of_b))
        for score in (name for name in of_a[0][1] if name in of_b[0][1]):
            x, y = (torch.stack([each[score] for _, each in of[:seeds]]) for of in (of_a, of_b))
            found_one = paired_difference(x, y)
            row = {"a": a, "b": b, "score": score, "difference": found_one["difference"]}
            rows.append(
                row | {"difference_ci": found_one["ci"], "n": found_one["n"], "seeds": seeds}
            )
    return rows[:_MOST]
