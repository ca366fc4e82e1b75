"""Measure the gain of each switch on this machine: one off, or on, at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from benchmarks.harness.ours import Ours
from benchmarks.harness.turns import PARITY_STEPS, Tolerance, Way, spread
from benchmarks.speed.session import Session
from lensdist.config.schema import BaseRun
from lensdist.models.vit import blocks_of
from lensdist.utils.errors import RunError, UserError

NARROW = Tolerance(2e-2, 5e-2)
"""Tolerance for another precision: the eight bits of a bfloat16 are 4e-3 per number."""
BASE = "as configured"


@dataclass(frozen=True)
class Rung:
    """A run that differs in one switch.

    Attributes:
        change: `key=value`s.
        against: settings shared with the run that it is compared with.
        tolerance: of its losses, if they may differ by more than rounding.
    """

    change: tuple[str, ...]
    against: tuple[str, ...] = ()
    tolerance: Tolerance | None = None

    @property
    def name(self) -> str:
        """The change, as the table shows it."""
        return " ".join(self.change)


def rungs(
    cfg: BaseRun, network: nn.Module, *, frozen: bool, device: torch.device, processes: int,
    steps: int,
) -> Iterator[Rung]:  # fmt: skip
    """Yield the rungs that apply to a run.

    Args:
        cfg: the run's configuration.
        network: of the run; its layers decide which rungs apply.
        frozen: whether some layers are frozen for a while.
        device: of the run's processes.
        processes: that share the work.
        steps: of a window, which holds one save when saving is measured.
    """
    cuda, how = device.type == "cuda", cfg.speed
    transformer = bool(blocks_of(network))
    yield Rung((f"precision={'bf16' if cfg.precision == 'no' else 'no'}",), tolerance=NARROW)
    if transformer or cfg.engine == "ddp":
        other = "blocks" if transformer else "whole"
        yield Rung((f"speed.compile={other if how.compile == 'no' else 'no'}",), tolerance=NARROW)
    if cuda and cfg.engine == "ddp" and processes == 1:
        if how.cuda_graphs:
            yield Rung(("speed.cuda_graphs=false",), tolerance=NARROW)
        else:
            whole = ("speed.compile=whole",)
            yield Rung(("speed.cuda_graphs=true",), whole, tolerance=NARROW)
    if _is_convolutional(network):
        yield Rung((f"speed.channels_last={_word(not how.channels_last)}",))
    if transformer:
        yield Rung((f"speed.recompute={_word(not how.recompute)}",))
    if processes > 1 and cfg.engine == "ddp":
        yield Rung((f"speed.bucket_mb={25 if how.bucket_mb != 25 else 100}",))
    if cuda:
        yield Rung((f"train.deterministic={_word(not cfg.train.deterministic)}",))
    if cfg.data.source == "packed":
        kept = cfg.data.resident == "yes" or (cfg.data.resident == "auto" and cuda)
        yield Rung((f"data.resident={'no' if kept else 'yes'}",))
    if frozen:
        yield Rung((f"cache.max_gb={0 if cfg.cache.max_gb else 4}",))
    saving = (f"checkpoint.every_steps={steps}",)  # one save per window, on both sides
    yield Rung((f"checkpoint.background={_word(not cfg.checkpoint.background)}",), saving)
    yield Rung((f"train.ema={'null' if cfg.train.ema else '0.999'}",))
    # BatchNorm depends on the micro-batch: with another, another network is trained.
    if not any(isinstance(module, _BatchNorm) for module in network.modules()):
        micro, most = cfg.train.micro(processes), cfg.train.global_batch // processes
        if micro < most:
            yield Rung((f"train.micro_batch={most}",))
        elif micro % 2 == 0:
            yield Rung((f"train.micro_batch={micro // 2}",))


def _is_convolutional(network: nn.Module) -> bool:
    """Return whether convolutions matter; that of patches is a matrix product."""
    own = (m for m in network.modules() if isinstance(m, nn.Conv2d) and m.kernel_size != m.stride)
    size = sum(p.numel() for p in network.parameters())
    return sum(p.numel() for m in own for p in m.parameters()) > size / 100


def climb(session: Session) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Compare the run with all rungs: losses first, then speeds in turns.

    Returns:
        A row per rung (see `turns.compare`; `gain`: its speed relative to the run that it is
        compared with), with `loss_difference`; and the rungs that were left out, with the reason.
    """
    left_out: dict[str, str] = {}
    rows: list[dict[str, Any]] = []
    base = session.ours()
    every = rungs(
        session.cfg, base.network, frozen=not base.whole, device=session.device,
        processes=session.world.size, steps=session.steps,
    )  # fmt: skip
    groups: dict[tuple[str, ...], dict[str, tuple[Ours, float]]] = {}
    for rung in every:
        difference, why = 0.0, ""
        try:
            difference = _difference(session, rung)
        except (UserError, RunError, RuntimeError) as e:  # no compiler, no such kernel
            why = str(e).strip().splitlines()[0]
        if session.world.any(bool(why)):
            left_out[rung.name] = why or "another process could not run it"
            continue
        ours = session.ours(*rung.against, *rung.change)
        groups.setdefault(rung.against, {})[rung.name] = ours, difference
    for against, members in groups.items():
        ways: dict[str, Way] = {" ".join((BASE, *against)): session.ours(*against).way}
        ways |= {name: ours.way for name, (ours, _) in members.items()}
        found = session.compare(ways, session.bench.windows)
        for row in found:
            for gain, over in (("gain", "first_over"), ("cpu_gain", "cpu_first_over")):
                if over in row:
                    row |= spread(gain, [1 / ratio for ratio in row[f"{over}_each"]])
            if row["way"] in members:
                row["loss_difference"] = members[row["way"]][1]
        rows += found
    return rows, left_out


def _difference(session: Session, rung: Rung) -> float:
    """Return the largest difference of the first losses; raise if it is larger than rounding."""
    changed, base = session.still(*rung.against, *rung.change), session.still(*rung.against)
    losses = changed.way.losses(PARITY_STEPS, session.device)
    wanted = base.way.losses(PARITY_STEPS, session.device)
    tolerance = rung.tolerance or session.rounding
    return tolerance.refuse(rung.name, losses, wanted)


def _word(flag: bool) -> str:
    return "true" if flag else "false"
