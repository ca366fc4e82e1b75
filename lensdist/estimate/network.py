"""The operations, memory traffic and activations of a run's network, by tracing (torch-free).

`trace.py` runs the network once on the meta device; the result is kept as JSON in the user's cache
folder. A step's forward and backward pass are counted; a multiply-add is two operations. Work
around the network is not: reading, resizing, masks, augmentation, preprocessing.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lensdist.config.schema import BaseRun
from lensdist.utils.errors import UserError
from lensdist.utils.files import cache_folder, sha256, to_json, write_atomic
from lensdist.utils.provenance import PACKAGE
from lensdist.utils.sealed import read_json

_FLOAT = 4  # bytes
_SECONDS = 600  # for a process that traces: torch alone may take a minute from a slow file system
# Settings that do not change a network, its frozen part, or its inputs.
_WITHOUT = {
    *("preset", "seed", "run", "data", "augment", "optim", "train", "checkpoint", "cache"),
    *("track", "engine", "shard", "speed", "precision"),
}
_CODE = ("models", "tasks", "data/transforms.py", "estimate/trace.py", "estimate/kernels.py")
_found: dict[str, Network | str] = {}  # a string is the reason why there is none
_NO_TORCH = "torch cannot be imported here"


@dataclass(frozen=True)
class Op:
    """An operation on one image, forward.

    Attributes:
        flops: of matrix products and convolutions; 0 for all others.
        moved: bytes of activations read and written, once each.
        weights: parameters that no earlier operation has used.
        width: bytes of a weight as it is read.
        fuses: whether a compiler fuses it with the operation before.
        wide: whether `precision: fp8` computes its product in float8.
        block: number of its transformer layer; -1 outside of them.
        learns: whether its backward pass is computed.
        trains: whether the gradients of its weights are computed.
    """

    flops: float
    moved: float
    weights: int
    width: int
    fuses: bool
    wide: bool
    block: int
    learns: bool
    trains: bool

    @property
    def backward(self) -> int:
        """The cost of the backward pass in forward passes, for inputs and for weights."""
        return self.learns * (1 if self.weights and not self.trains else 2)

    def is_free(self, cfg: BaseRun) -> bool:
        """Return whether a compiler makes it part of the operation before."""
        compiled = cfg.speed.compile
        return self.fuses and (compiled == "whole" or (compiled == "blocks" and self.block >= 0))


@dataclass(frozen=True)
class Layer:
    """Operations whose gradients are ready together: a transformer layer, or a single one.

    Attributes:
        ops: in order.
        block: whether it is a transformer layer, which is sharded, compiled and recomputed as one.
    """

    ops: tuple[Op, ...]
    block: bool

    @cached_property
    def weights(self) -> int:
        return sum(op.weights for op in self.ops)

    @cached_property
    def trained(self) -> int:
        return sum(op.weights for op in self.ops if op.trains)


@dataclass(frozen=True)
class Stage:
    """The network while the same parameters train.

    Attributes:
        share: of the epochs.
        trained: number of parameters that train.
        layers: in the order in which an image passes them.
        kept: bytes of activations of one image that are kept for the backward pass, outside of
            transformer layers and in each of them.
    """

    share: float
    trained: int
    layers: tuple[Layer, ...]
    kept: tuple[float, tuple[float, ...]]

    def total(self, forward: Callable[[Op], float]) -> float:
        """Return the sum of the operations' costs, forward and backward."""
        return sum(forward(op) * (1 + op.backward) for layer in self.layers for op in layer.ops)


@dataclass(frozen=True)
class Network:
    """A network and its stages of training.

    Attributes:
        parameters: number of all parameters.
        entries: bytes of the input of each transformer layer, of one image.
        copies: bytes of autocast's copies of weights, outside of transformer layers and in each
            of them.
        stages: in order.
    """

    parameters: int
    entries: tuple[float, ...]
    copies: tuple[float, tuple[float, ...]]
    stages: tuple[Stage, ...]

    @property
    def fullest(self) -> Stage:
        """The stage in which most parameters train, or the last of several."""
        return max(reversed(self.stages), key=lambda stage: stage.trained)

    @property
    def full_from(self) -> float:
        """The share of the epochs before that stage."""
        return sum(stage.share for stage in self.stages[: self.stages.index(self.fullest)])

    @property
    def flops(self) -> float:
        """Operations of one image's forward pass."""
        return sum(op.flops for layer in self.stages[0].layers for op in layer.ops)

    def mean(self, forward: Callable[[Op], float]) -> float:
        """Return the mean over the epochs of the operations' costs, forward and backward."""
        return sum(stage.share * stage.total(forward) for stage in self.stages)


def train_flops(cfg: BaseRun) -> float | None:
    """Return the operations of one image in training, a mean over `train.epochs`.

    A backward pass takes two forward ones, and none before the first layer that trains. Operations
    that `speed.recompute` repeats count once. This is an upper bound: the outputs of a frozen part
    may be cached (`cache.max_gb`).

    Returns:
        None if the network cannot be traced.
    """
    with suppress(UserError):
        return network_of(cfg).mean(lambda op: op.flops)
    return None


def train_bytes(cfg: BaseRun, processes: int = 1) -> float | None:
    """Return the bytes of memory traffic of one image in training, a mean over `train.epochs`.

    Each operation reads and writes its activations once, and the backward pass moves twice as much.
    Operations that a compiler fuses with the one before (`speed.compile`) are free. Weights are
    read once in each direction, and their gradients written, once per micro-batch. The optimizer's
    traffic, once per step, does not count, nor does that repeated by `speed.recompute`.

    Returns:
        None if the network cannot be traced.
    """
    with suppress(UserError):
        network, micro = network_of(cfg), cfg.train.micro(processes)
        weights = network.mean(lambda op: float(op.weights * op.width))
        return network.mean(lambda op: 0.0 if op.is_free(cfg) else op.moved) + weights / micro
    return None


def network_of(cfg: BaseRun) -> Network:
    """Return a run's network from the cache, or trace and cache it.

    Raises:
        UserError: the network cannot be built or run, or torch is not installed.
    """
    prepare([cfg])
    found = _found[_key(cfg)]
    if isinstance(found, str):
        raise UserError(f"task {cfg.task}: the network cannot be estimated: {found}")
    return found


def prepare(cfgs: Sequence[BaseRun]) -> None:
    """Trace the networks of several runs that are not in the cache yet, in one process."""
    missing: dict[str, BaseRun] = {}
    for cfg in cfgs:
        key = _key(cfg)
        known = _found.get(key) or _read(key)
        if known is None:
            missing[key] = cfg
        else:
            _found[key] = known
    traced = _traced([*missing.values()]) if missing else []
    for number, key in enumerate(missing):
        facts = traced[number] if traced else {"error": _NO_TORCH}
        if "error" in facts:
            _found[key] = str(facts["error"])
        else:
            _found[key] = _from_json(facts)
            _write(key, facts)


def _traced(cfgs: Sequence[BaseRun]) -> list[dict[str, Any]]:
    """Return the results of `trace`: in this process if it has torch already, else in another."""
    if "torch" in sys.modules:
        from lensdist.estimate.trace import trace_all

        return trace_all(cfgs)
    command = [sys.executable, "-m", "lensdist.estimate.trace"]
    text = to_json([cfg.model_dump(mode="json") for cfg in cfgs])
    path = os.pathsep.join([str(PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    with suppress(OSError, ValueError, subprocess.SubprocessError):
        done = subprocess.run(
            command,
            input=text,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            env={**os.environ, "PYTHONPATH": path},
        )
        found: list[dict[str, Any]] = json.loads(done.stdout) if done.returncode == 0 else []
        return found
    return []


def _from_json(facts: dict[str, Any]) -> Network:
    """Build the network from the result of `trace.trace`.

    Raises:
        LookupError, TypeError, ValueError: it is something else.
    """
    blocks, total = len(facts["entries"]), sum(facts["epochs"])

    def by_block(sizes: dict[str, dict[str, float]], stage: int) -> tuple[float, tuple[float, ...]]:
        """Return a stage's part of `sizes`, outside of transformer layers and in each of them."""
        outside, *own = (
            sum(
                size
                for stages, size in sizes.get(str(block), {}).items()
                if int(stages) >> stage & 1
            )
            for block in range(-1, blocks)
        )
        return outside, tuple(own)

    stages = []
    for i, epochs in enumerate(facts["epochs"]):
        layers: list[list[Op]] = []
        for flops, moved, weights, width, fuses, wide, block, learns, trains in facts["ops"]:
            own = bool(learns >> i & 1), bool(trains >> i & 1)
            op = Op(flops, moved, weights, width, bool(fuses), bool(wide), block, *own)
            if block >= 0 and layers and layers[-1][-1].block == block:
                layers[-1].append(op)
            else:
                layers.append([op])
        whole = tuple(Layer(tuple(ops), ops[0].block >= 0) for ops in layers)
        kept = by_block(facts["kept"], i)
        stages.append(Stage(epochs / total, facts["trained"][i], whole, kept))
    copies = {block: {"1": size} for block, size in facts["copies"].items()}
    return Network(facts["parameters"], tuple(facts["entries"]), by_block(copies, 0), tuple(stages))


# ---- the cache


def _key(cfg: BaseRun) -> str:
    """Hash all that a trace depends on, except for code outside of this package."""
    own = cfg.model_dump(mode="json", exclude=_WITHOUT)
    for name in own:
        if isinstance(getattr(cfg, name), Path):  # the starting weights make no difference
            own[name] = True
    facts = [own, cfg.precision == "no", cfg.train.epochs, _code()]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


@cache
def _code() -> list[str]:
    """Return the versions and hashes of the code that builds and traces networks."""
    found = []
    for name in ("torch", "torchvision"):
        with suppress(PackageNotFoundError):
            found.append(version(name))
    for place in _CODE:
        files = [PACKAGE / place] if place.endswith(".py") else (PACKAGE / place).glob("*.py")
        found += [sha256(file) for file in sorted(files)]
    return found


def _file(key: str) -> Path | None:
    folder = cache_folder()
    return None if folder is None else folder / f"network-{key}.json"


def _read(key: str) -> Network | None:
    """Return a network from the cache; None if there is none, or a user's code has changed."""
    file = _file(key)
    with suppress(OSError, LookupError, TypeError, ValueError):
        if file is not None:
            facts = read_json(file)
            if all(sha256(Path(name)) == digest for name, digest in facts["sources"].items()):
                return _from_json(facts)
    return None


def _write(key: str, facts: dict[str, Any]) -> None:
    file = _file(key)
    if file is not None:
        with suppress(OSError):  # on a full disk, trace it again the next time
            write_atomic(file, to_json(facts, indent=None))
