"""Trace a network on the meta device: what each operation computes, moves and keeps.

`python -m lensdist.estimate.trace` does so for a JSON list of configurations on stdin, since the
launcher has no torch. A tensor on the meta device has a shape and no memory, so billions of
parameters take seconds. Only the forward pass is run: the tensors that it reads and saves determine
the backward passes of each stage, and what they need.
"""

from __future__ import annotations

import inspect
import json
import sys
import warnings
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from lensdist.config.schema import BaseRun, schema_of
from lensdist.data.transforms import Preprocess
from lensdist.distributed import fp8
from lensdist.estimate.kernels import Kernels
from lensdist.models.vit import blocks_of
from lensdist.tasks.build import build_task
from lensdist.tasks.registry import AnyTask
from lensdist.tasks.types import Stage
from lensdist.utils.errors import UserError
from lensdist.utils.files import sha256, to_json
from lensdist.utils.provenance import PACKAGE

_IMAGES = 8  # of the traced batch, by which everything is divided
_CLASSES = ("0", "1", "2")  # the data's classes are not in a configuration; the last layer is small

_aten = torch.ops.aten
_COPIES = {_aten._to_copy.default, _aten.clone.default, _aten.native_dropout.default}


def trace_all(cfgs: Iterable[BaseRun]) -> list[dict[str, Any]]:
    """Return `trace` of each, or `{"error": why}` if a network cannot be built or run."""
    found: list[dict[str, Any]] = []
    for cfg in cfgs:
        try:
            found.append(trace(cfg))
        except UserError as error:
            found.append({"error": str(error)})
        except Exception as error:  # a user's network may raise anything
            found.append({"error": " ".join(f"{type(error).__name__}: {error}".split())[:300]})
    return found


def trace(cfg: BaseRun) -> dict[str, Any]:
    """Trace a run's network, as JSON.

    Returns:
        `parameters`; `epochs` and `trained` parameters of each stage; `entries`, bytes of each
        transformer layer's input; `ops`, rows of `lensdist.estimate.network.Op`, whose last two
        entries have a bit for each stage; `kept` bytes by transformer layer (-1: outside), and by
        the stages (bits) that keep them for the backward pass; bytes of autocast's `copies` of
        weights by transformer layer; `sources`, the hashes of files outside of this package that
        the network was built from. All but weights are of one image.
    """
    with warnings.catch_warnings(), torch.random.fork_rng([]):
        warnings.simplefilter("ignore")
        with torch.device("meta"):
            task = _task(cfg)
            network = task.build()
            inputs = task.example(_IMAGES)
            stages = _stages(cfg, task)
        network.train().requires_grad_(True)
        tape = _Tape(network, stages)
        saved = saved_tensors_hooks(tape.pack, lambda tensor: tensor)
        with saved, Kernels(half=cfg.precision != "no"), tape:
            network(*inputs)
        return tape.facts() | {"sources": _sources([task, *network.modules()])}


def _task(cfg: BaseRun, weights: dict[str, Tensor] | None = None) -> AnyTask:
    return build_task(cfg, _CLASSES, Preprocess(cfg.preprocess, [0.0], [1.0]), weights)


def _stages(cfg: BaseRun, task: AnyTask) -> list[Stage]:
    """Return the stages of a run that starts from the weights its configuration names."""
    if cfg.starts_from():
        task = _task(cfg, {})  # as if its weights had been read: without them nothing is frozen
    return task.stages(cfg.train.epochs)


def _sources(parts: Iterable[object]) -> dict[str, str]:
    """Return hashes of the files that define these objects' classes, except installed packages."""
    found = {}
    for kind in {kind for part in parts for kind in type(part).__mro__}:
        file = getattr(sys.modules.get(kind.__module__), "__file__", None)
        path = Path(file).resolve() if file else None
        if path is None or path.is_relative_to(PACKAGE) or "site-packages" in path.parts:
            continue
        if not path.is_relative_to(Path(inspect.__file__).parent):
            found[str(path)] = sha256(path)
    return found


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


class _Tape(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A record of every operation that is run.

    Sets of stages are bits of a number: those in which a parameter trains and, for all that is
    computed from it, those in which gradients flow.
    """

    def __init__(self, network: nn.Module, stages: Sequence[Stage]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._epochs = [stage.epochs for stage in stages]
        named = dict(network.named_parameters())
        self._sizes = {name: p.numel() for name, p in named.items()}
        self._trains = {
            name: sum(stage.trains(name) << i for i, stage in enumerate(stages)) for name in named
        }
        self._weights = {_storage(p): name for name, p in named.items()}  # also those of copies
        self._buffers = {_storage(b) for b in network.buffers()}
        self._wide = {f"{name}.weight" for name in fp8.layers(network).wide}
        self._learns = {_storage(p): self._trains[name] for name, p in named.items()}
        self._alive: list[Tensor] = []  # otherwise a storage's address would be reused
        self._used: set[str] = set()
        self._rows: list[list[float]] = []
        self._packed: list[Tensor] = []
        # By storage: transformer layer, stages, bytes.
        self._saved: dict[int, tuple[int, int, int]] = {}
        self._copies: defaultdict[int, int] = defaultdict(int)
        self._entries: list[float] = []
        self._block = -1
        for number, block in enumerate(blocks_of(network)):
            block.register_forward_pre_hook(self._enter(number))
            block.register_forward_hook(self._leave)

    def _enter(self, number: int) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            self._block = number
            self._entries.append(args[0].nbytes / _IMAGES)

        return hook

    def _leave(self, *_: object) -> None:
        self._block = -1

    def pack(self, tensor: Tensor) -> Tensor:
        """Note a tensor that autograd saves for the backward pass."""
        self._packed.append(tensor)
        return tensor

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunction():  # shapes are computed in Python, not by the network
            out = func(*args, **kwargs)
        made = _tensors(out)
        if not made:
            return out
        self._alive += made
        read = _tensors((args, kwargs))
        learns = reduce(or_, (self._learns.get(_storage(one), 0) for one in read), 0)
        for one in made:
            self._learns[_storage(one)] = self._learns.get(_storage(one), 0) | learns
        names = {self._weights[_storage(one)] for one in read if _storage(one) in self._weights}
        if func is _aten._to_copy.default and names:  # autocast's copy of a weight
            self._weights[_storage(out)] = names.pop()
            self._copies[self._block] += out.nbytes
        elif not _is_view(func) and (read or "empty" not in func.name()):
            self._keep(learns)
            counted = flop_registry.get(func._overloadpacket)
            flops = counted(*args, **kwargs, out_val=out) if counted else 0
            fuses = torch.Tag.pointwise in func.tags or func in _COPIES
            self._note(flops, read, made, names, fuses, learns)
        return out

    def _note(
        self,
        flops: int,
        read: Sequence[Tensor],
        made: Sequence[Tensor],
        names: set[str],
        fuses: bool,
        learns: int,
    ) -> None:
        """Record an operation: the fields of `lensdist.estimate.network.Op`, in order."""
        weights = [one for one in read if _storage(one) in self._weights]
        state = self._buffers | self._weights.keys()
        other = {id(one): one for one in read if _storage(one) not in state}
        moved = sum(
            min(one.nbytes, one.untyped_storage().nbytes()) for one in (*other.values(), *made)
        )
        new, self._used = names - self._used, self._used | names
        self._rows.append(
            [
                flops / _IMAGES,
                moved / _IMAGES,
                sum(self._sizes[name] for name in new),
                (weights or made)[0].element_size(),
                int(fuses),
                int(bool(flops) and not names.isdisjoint(self._wide)),
                self._block,
                learns,
                reduce(or_, (self._trains[name] for name in names), 0),
            ]
        )

    def _keep(self, learns: int) -> None:
        """Record the tensors saved since the last operation: inputs of the next, or its outputs."""
        for tensor in self._packed:
            place = _storage(tensor)
            if place in self._weights or place in self._buffers:
                continue
            block, stages, _ = self._saved.get(place, (self._block, 0, 0))
            size = tensor.untyped_storage().nbytes()
            self._saved[place] = (block, stages | learns, size)
            self._alive.append(tensor)
        self._packed.clear()

    def facts(self) -> dict[str, Any]:
        """Return the results; see `trace`."""
        self._keep(-1)
        kept: dict[int, dict[int, float]] = {}
        for block, stages, size in self._saved.values():
            own = kept.setdefault(block, {})
            stages &= (1 << len(self._epochs)) - 1
            own[stages] = own.get(stages, 0.0) + size / _IMAGES
        trained = [
            sum(size for name, size in self._sizes.items() if self._trains[name] >> i & 1)
            for i in range(len(self._epochs))
        ]
        return {
            "parameters": sum(self._sizes.values()),
            "epochs": self._epochs,
            "trained": trained,
            "entries": self._entries,
            "ops": self._rows,
            "kept": {str(k): {str(m): s for m, s in v.items()} for k, v in kept.items()},
            "copies": {str(k): v for k, v in self._copies.items()},
        }


def _tensors(tree: Any) -> list[Tensor]:
    return [one for one in tree_leaves(tree) if isinstance(one, Tensor)]


def _is_view(func: Any) -> bool:
    """Return whether the result is only a view of an input's memory."""
    if func is _aten._unsafe_view.default:
        return True
    return any(r.alias_info and not r.alias_info.is_write for r in func._schema.returns)


def main() -> int:
    """Trace the configurations on stdin, and write the results to stdout, as JSON."""
    found = json.load(sys.stdin)
    stdout, sys.stdout = sys.stdout, sys.stderr  # a user's network may print
    answers = trace_all(schema_of(raw).model_validate(raw) for raw in found)
    stdout.write(to_json(answers, indent=None))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
