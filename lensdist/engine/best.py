"""The model that validation chose."""

from __future__ import annotations

import sys
from pathlib import Path

from torch import nn

from lensdist.engine import checkpoint
from lensdist.engine.loop import Outcome


def best_model(root: Path, outcome: Outcome, averaged: bool) -> nn.Module:
    """The network with the weights of the best checkpoint (of their average where there is one).

    Where that checkpoint is damaged, or validation never gave a number, the last weights.
    """
    step = outcome.state.best_step
    if step is None or step == outcome.state.step:
        return outcome.model
    prefix = "average/" if averaged else "model/"
    try:
        saved = checkpoint.read(root / f"step-{step:08d}").tensors
    except checkpoint.Damaged as e:
        print(f"warning: the best checkpoint is lost, exporting the last: {e}", file=sys.stderr)
        return outcome.model
    outcome.model.load_state_dict(
        {k[len(prefix) :]: v for k, v in saved.items() if k.startswith(prefix)}
    )
    return outcome.model
