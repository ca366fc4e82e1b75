"""Estimate a GPU's memory in training (torch-free).

Weights, gradients and Adam's moments are float32 in every engine and at every precision; ZeRO's
stages define what is divided among processes (Rajbhandari et al. 2020, arXiv:1910.02054).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import astuple, dataclass

from lensdist.config.schema import BaseRun
from lensdist.estimate.network import Network, network_of

FLOAT = 4  # bytes
MOMENTS = 8  # bytes of Adam's two per parameter
_SPARE = 0.08  # share of a GPU's memory for CUDA, NCCL and the allocator's losses


@dataclass(frozen=True)
class Memory:
    """The bytes of one GPU at the fullest moment of a step.

    Attributes:
        weights: its share, and the copy that DeepSpeed steps on.
        gradients: its share.
        moments: Adam's.
        average: of `train.ema`.
        activations: of a micro-batch, kept for the backward pass, and of the current operation.
        passing: weights gathered from other processes or copied by autocast, and buckets.
    """

    weights: float
    gradients: float
    moments: float
    average: float
    activations: float
    passing: float

    @property
    def total(self) -> float:
        return float(sum(astuple(self)))

    def fits(self, memory_gb: float) -> bool:
        """Return whether it fits a GPU of so many GB (1e9 bytes)."""
        return self.total <= (1 - _SPARE) * memory_gb * 1e9


@dataclass(frozen=True)
class State:
    """The bytes of the model's state that a process holds."""

    weights: float
    gradients: float
    moments: float


def model_state(
    engine: str,
    stage: int,
    weights: float,
    trained: float,
    processes: int,
    *,
    width: float = FLOAT,
    moments: float = MOMENTS,
) -> State:
    """Return a process's state by ZeRO's arithmetic (arXiv:1910.02054, section 5 and figure 1).

    Args:
        engine: ddp divides nothing.
        stage: of fsdp and deepspeed.
        weights: number of parameters.
        trained: number of those that train.
        processes: number of processes that share them.
        width: bytes of a weight, and of its gradient.
        moments: bytes of the optimizer's state per parameter.
    """
    level = 0 if engine == "ddp" else stage
    if engine == "fsdp":
        level = 3  # between steps stage 2, too, holds only a share
    share = 1 / processes
    return State(
        width * weights * (share if level >= 3 else 1),
        width * trained * (share if level >= 2 else 1),
        moments * trained * (share if level >= 1 else 1),
    )


def activations(network: Network, cfg: BaseRun) -> float:
    """Return the bytes of one image's activations, kept for the backward pass.

    Under `speed.recompute` transformer layers keep their inputs, and one of them the rest.
    """
    stage = network.fullest
    outside, blocks = stage.kept
    if cfg.speed.recompute:
        blocks = (*network.entries, max(blocks, default=0.0))
    at_work = max((op.moved for layer in stage.layers for op in layer.ops), default=0.0)
    return outside + sum(blocks) + at_work


def copies(network: Network, cfg: BaseRun) -> float:
    """Return the bytes of autocast's copies of weights, kept for the backward pass."""
    outside, blocks = network.copies
    return outside + (max(blocks, default=0.0) if cfg.speed.recompute else sum(blocks))


def memory(cfg: BaseRun, processes: int, micros: int = 1) -> Memory:
    """Return the memory of a GPU in the stage in which most parameters train.

    Args:
        cfg: the run's configuration.
        processes: GPUs that share the run.
        micros: micro-batches of a step on each GPU.

    Raises:
        UserError: the network cannot be traced.
    """
    network = network_of(cfg)
    stage, engine, share = cfg.shard.stage, cfg.engine, 1 / processes
    weights, trained = float(network.parameters), float(network.fullest.trained)
    state = model_state(engine, stage, weights, trained, processes)
    own, gradients, moments = state.weights, state.gradients, state.moments
    divided = engine == "fsdp" or (engine == "deepspeed" and stage == 3)
    if engine == "deepspeed" and not cfg.shard.offload:
        own += FLOAT * trained * share  # the flat copy that Adam steps on
    if cfg.train.reproducible:
        gradients *= micros
    # Of all weights: those that are frozen now may train in a later stage.
    average = FLOAT * weights * (share if divided else 1) if cfg.train.ema is not None else 0.0
    if cfg.shard.offload and engine != "ddp":
        moments = 0.0
        gradients = gradients if stage == 1 else 0.0
        own, average = (0.0, 0.0) if divided else (own, average)
    return Memory(
        own,
        gradients,
        moments,
        average,
        cfg.train.micro(processes) * activations(network, cfg),
        copies(network, cfg) + _passing(cfg, network),
    )


def _passing(cfg: BaseRun, network: Network) -> float:
    """Return the bytes of gathered parameters and of gradients in buckets."""
    if cfg.engine == "ddp":
        return 0.0  # its buckets are the gradients
    if cfg.engine == "deepspeed" and cfg.shard.stage < 3:
        return 2.0 * cfg.speed.bucket_mb * 1e6  # one is filled while the other is sent
    blocks = [layer.weights for layer in network.fullest.layers if layer.block]
    root, largest = network.parameters - sum(blocks), max(blocks, default=0)
    # Gathered: everything, or a layer beside the next one; and the gradients of two layers.
    gathered = root + (sum(blocks) if cfg.shard.stage == 2 else 2 * largest)
    return FLOAT * float(gathered + max(root, 2 * largest))


def remedy(cfg: BaseRun, processes: int, micros: int, memory_gb: float) -> str | None:
    """Return the settings with which a run fits a GPU of so many GB, the cheapest first.

    Returns:
        Words such as `speed.recompute=true makes it 31 GB`; None if nothing does.
    """
    for words, other in alternatives(cfg, processes):
        found = memory(other, processes, micros)
        if found.fits(memory_gb):
            return f"{words} makes it {found.total / 1e9:.3g} GB"
    return None


def alternatives(cfg: BaseRun, processes: int = 1) -> Iterator[tuple[str, BaseRun]]:
    """Yield settings that need less memory, the cheapest first, and the run with them."""
    transformer = bool(network_of(cfg).entries)
    changed: dict[str, object] = {}

    def so_far() -> tuple[str, BaseRun]:
        words = ", ".join(f"{key}={str(value).lower()}" for key, value in changed.items())
        return words, with_settings(cfg, changed)

    if transformer and not cfg.speed.recompute:
        changed["speed.recompute"] = True
        yield so_far()
    for size in _smaller(cfg, processes):
        yield (
            f"train.micro_batch={size}",
            with_settings(cfg, {"train.micro_batch": size}),
        )
    if cfg.engine == "ddp" or cfg.shard.stage < 3:
        changed |= {"engine": "fsdp" if cfg.engine == "ddp" else cfg.engine, "shard.stage": 3}
        if cfg.train.reproducible:
            changed["train.reproducible"] = False
        yield so_far()
    for size in _smaller(cfg, processes):
        changed["train.micro_batch"] = size
        yield so_far()
    if not cfg.shard.offload:
        changed["shard.offload"] = True
        yield so_far()


def _smaller(cfg: BaseRun, processes: int) -> list[int]:
    """Return smaller micro-batches that divide global_batch, each at most half of the last."""
    sizes, last = [], cfg.train.micro(processes)
    for size in range(last // 2, 0, -1):
        if cfg.train.global_batch % size == 0 and size <= last // 2:
            with suppress(ValueError):  # BatchNorm needs two images
                with_settings(cfg, {"train.micro_batch": size})
                sizes.append(size)
                last = size
    return sizes


def with_settings(cfg: BaseRun, changes: dict[str, object]) -> BaseRun:
    """Return the run with other settings, by their dotted names.

    Raises:
        ValueError: the run cannot have them.
    """
    raw = cfg.model_dump()
    for key, value in changes.items():
        *parts, last = key.split(".")
        place = raw
        for part in parts:
            place = place[part]
        place[last] = value
    return type(cfg).model_validate(raw)
