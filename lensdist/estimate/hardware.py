"""The shape of a cluster, and the speed of a GPU and of the links between GPUs (torch-free)."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from pydantic import Field, field_validator, model_validator

from lensdist.config.schema import BaseRun
from lensdist.utils.settings import Strict


class Gpu(NamedTuple):
    """A data sheet: GB, dense TFLOP/s, and GB/s of the memory and of one-way links in a node.

    Data sheets like to print sparse TFLOP/s, which are twice as many.
    """

    memory_gb: float
    bf16_tflops: float
    fp16_tflops: float
    fp32_tflops: float
    fp8_tflops: float | None
    memory_gb_s: float
    link_gb_s: float


GPUS = {
    # NVIDIA V100 data sheet (January 2020), SXM2. It has no bfloat16: float32's rate at best.
    "V100-16": Gpu(16, 15.7, 125, 15.7, None, 900, 150),
    "V100-32": Gpu(32, 15.7, 125, 15.7, None, 900, 150),
    # NVIDIA A40 data sheet. PCIe 4.0 x16 between GPUs: NVLink joins pairs only.
    "A40": Gpu(48, 149.7, 149.7, 37.4, None, 696, 31.5),
    # NVIDIA A100 data sheets (2020, 40 GB; nvidia-1758950-r4, 80 GB), SXM4.
    "A100-40": Gpu(40, 312, 312, 19.5, None, 1555, 300),
    "A100-80": Gpu(80, 312, 312, 19.5, None, 2039, 300),
    # NVIDIA L40S data sheet. PCIe 4.0 x16 between GPUs.
    "L40S": Gpu(48, 362, 362, 91.6, 733, 864, 31.5),
    # NVIDIA H100 data sheet, SXM5.
    "H100": Gpu(80, 989, 989, 67, 1979, 3350, 450),
    # NVIDIA H200 data sheet, SXM5.
    "H200": Gpu(141, 989, 989, 67, 1979, 4800, 450),
}

# Shares of the data sheets' peaks. A copy on an H200 reaches nine tenths of its bandwidth, and
# collectives on NVLink and InfiniBand about eight.
_MEMORY_SHARE, _LINK_SHARE = 0.9, 0.8
_LINK_LATENCY = 1e-6  # s from a GPU to the next in its node


class Hardware(Strict):
    """The speed of a cluster's GPUs and network, for `lensdist estimate` and `plan`.

    A GPU that is known by name needs nothing else; other settings replace the values of its sheet.
    """

    gpu: str | None = Field(
        None, description=f"one of {', '.join(GPUS)}; null: all values are set here"
    )
    memory_gb: float | None = Field(None, gt=0, description="memory of a GPU")
    bf16_tflops: float | None = Field(None, gt=0, description="peak of dense products in bfloat16")
    fp16_tflops: float | None = Field(
        None, gt=0, description="peak of dense products in float16; null: bfloat16's"
    )
    fp32_tflops: float | None = Field(None, gt=0, description="peak of dense products in float32")
    fp8_tflops: float | None = Field(None, gt=0, description="peak in float8; null: it has none")
    memory_gb_s: float | None = Field(None, gt=0, description="bandwidth of a GPU's memory")
    sustained: float = Field(
        0.7, gt=0, le=1, description="share of those peaks that products reach in training"
    )
    link_gb_s: float | None = Field(
        None, gt=0, description="bandwidth between GPUs of a node, one way; null: PCIe 4.0"
    )
    network_gb_s: float = Field(
        25.0,
        gt=0,
        description="bandwidth out of a node, one way, of all its adapters: 25 is one of 200 Gb/s",
    )
    latency_us: float = Field(5.0, ge=0, description="latency of a message from node to node")

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        if self.gpu is not None and self.gpu not in GPUS:
            raise ValueError(
                f"gpu: {self.gpu!r} is not one of {', '.join(GPUS)}; leave it out, and give "
                "memory_gb, bf16_tflops, fp32_tflops and memory_gb_s"
            )
        needed = ("memory_gb", "bf16_tflops", "fp32_tflops", "memory_gb_s")
        missing = [name for name in needed if getattr(self, name) is None]
        if self.gpu is None and missing:
            raise ValueError(f"without gpu, give {', '.join(missing)} as well")
        return self

    @property
    def sheet(self) -> Gpu:
        """The GPU's data sheet, with the values that are set here."""
        own = {name: getattr(self, name) for name in Gpu._fields}
        if self.gpu is not None:
            given = {name: value for name, value in own.items() if value is not None}
            return GPUS[self.gpu]._replace(**given)
        own["fp16_tflops"] = own["fp16_tflops"] or own["bf16_tflops"]
        own["link_gb_s"] = own["link_gb_s"] or 31.5
        return Gpu(**own)

    @property
    def name(self) -> str:
        """The GPU's name in tables."""
        return self.gpu or "GPU"

    def flops(self, cfg: BaseRun, *, wide: bool = False) -> float:
        """Return the operations per second that products sustain at a run's precision.

        With `wide`, return those of products that `precision: fp8` covers. A GPU without float8
        computes them in bfloat16.
        """
        sheet = self.sheet
        peaks = {"no": sheet.fp32_tflops, "fp16": sheet.fp16_tflops}
        peak = peaks.get(cfg.precision, sheet.bf16_tflops)
        if wide and self.in_fp8(cfg):
            peak = sheet.fp8_tflops or peak
        return self.sustained * peak * 1e12

    def in_fp8(self, cfg: BaseRun) -> bool:
        """Return whether wide products of a run are in float8."""
        return cfg.precision == "fp8" and self.sheet.fp8_tflops is not None

    @property
    def bandwidth(self) -> float:
        """Bytes per second of a GPU's memory."""
        return _MEMORY_SHARE * self.sheet.memory_gb_s * 1e9

    def links(self, gpus: int, per_node: int) -> Links:
        """Return the links between so many GPUs, of which a node has `per_node`."""
        each = min(gpus, per_node)
        nodes = -(-gpus // per_node)
        slowest = self.sheet.link_gb_s
        if nodes > 1:  # a ring leaves every node once, and carries the same everywhere
            slowest = min(slowest, self.network_gb_s) if each > 1 else self.network_gb_s
        return Links(gpus, nodes, _LINK_SHARE * slowest * 1e9, self.latency_us * 1e-6)


@dataclass(frozen=True)
class Links:
    """The time of collectives between processes, in seconds.

    Bandwidth is that of a ring, the best possible (Patarasuk & Yuan 2009, J. Parallel Distrib.
    Comput. 69, 117); an all-reduce's latency is that of a tree if it is lower (Sanders et al. 2009,
    Parallel Comput. 35, 581): NCCL takes the better one.

    Attributes:
        gpus: processes.
        nodes: nodes that they are on.
        bandwidth: bytes per second of a ring's slowest link.
        latency: seconds from node to node.
    """

    gpus: int
    nodes: int
    bandwidth: float
    latency: float

    @property
    def share(self) -> float:
        """The share of a tensor that a process sends in a reduce-scatter or an all-gather."""
        return (self.gpus - 1) / self.gpus

    @property
    def _round(self) -> float:
        """Seconds for one round of a ring."""
        if self.nodes == 1:
            return (self.gpus - 1) * _LINK_LATENCY
        return self.nodes * self.latency + (self.gpus - self.nodes) * _LINK_LATENCY

    @property
    def _climb(self) -> float:
        """Seconds from the leaves of a tree to its root: within a node, and from node to node."""
        along = self.gpus / self.nodes - 1
        return along * _LINK_LATENCY + math.ceil(math.log2(self.nodes)) * self.latency

    def scatter(self, size: float) -> float:
        """Return the seconds of a reduce-scatter, or all-gather, of `size` bytes in all."""
        if self.gpus == 1 or not size:
            return 0.0
        return self.share * size / self.bandwidth + self._round

    def all_reduce(self, size: float) -> float:
        """Return the seconds of an all-reduce of `size` bytes per process."""
        if self.gpus == 1 or not size:
            return 0.0
        return 2 * self.share * size / self.bandwidth + 2 * min(self._round, self._climb)


_RANGE = re.compile(r"(\d+)-(\d+)")
_GPUS = re.compile(r"(?:gpu:)?(?:([A-Za-z][\w.-]*):)?(\d+)")


class Shape(Strict):
    """The number of processes that a cluster gives a run, and their hardware."""

    nodes: int | str = Field(
        1, description="nodes of a training job; 2-8: as many as SLURM has free at each start"
    )
    gpus_per_node: int | str | None = Field(
        None,
        description="GPUs of a node: 4, or with their type a100:4; null: request none (a local "
        "process uses one if it finds one)",
    )
    processes_per_node: int | None = Field(None, ge=1, description="null: one per GPU, or one")
    hardware: Hardware | None = Field(
        None,
        description="speed of its GPUs and links, for `lensdist estimate`; plan also uses "
        "it in place of tflops",
    )

    @field_validator("gpus_per_node", mode="before")
    @classmethod
    def _a_number_perhaps_with_a_type(cls, value: Any) -> Any:
        if value is None or isinstance(value, bool | float):
            return value
        found = _GPUS.fullmatch(str(value))
        if found is None or int(found[2]) < 1:
            raise ValueError(f"{value!r} is not a number of GPUs; give one, or TYPE:NUMBER")
        return int(found[2]) if found[1] is None else f"{found[1]}:{found[2]}"

    @field_validator("nodes", mode="before")
    @classmethod
    def _a_number_or_a_range(cls, value: Any) -> Any:
        text = str(value)
        if text.isdigit() and int(text) >= 1:
            return int(text)
        found = _RANGE.fullmatch(text)
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise ValueError(
                f"{value!r} is not a number of nodes; give one, or a range such as 2-8"
            )
        return int(found[1]) if found[1] == found[2] else text

    @property
    def fewest(self) -> int:
        """The least number of nodes for a job to start."""
        return int(str(self.nodes).partition("-")[0])

    @property
    def most(self) -> int:
        """The largest number of nodes."""
        return int(str(self.nodes).rpartition("-")[2])

    @property
    def per_node(self) -> int:
        """The number of processes on a node."""
        return self.processes_per_node or self.gpus or 1

    @property
    def gpus(self) -> int:
        """The number of GPUs that a node is asked for."""
        return int(str(self.gpus_per_node or 0).rpartition(":")[2])
