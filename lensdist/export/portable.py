"""Write trained models for use without lensdist: as ONNX, or with PyTorch's own `torch.export`.

Either file holds preprocessing and network as one graph, for any batch size:

    classifier           image (N, C, H, W) float32                       -> logits (N, classes)
    masked autoencoder   image, and mask (N, patches) bool, true = hidden -> recon (N, C, H, W)
    super-resolution     image (N, C, H, W) of the trained size     -> enlarged (N, C, f H, f W)

Images, also enlarged or reconstructed ones, are in the units found on disk. Neither file is a
pickle, but `torch.export.load` unpickles parts of a foreign `.pt2` (torch 2.13: tensors marked so,
constants and example inputs, with `weights_only=False`), which may be code: load only files from
sources whose code you trust. An ONNX file cannot run code.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from lensdist.export.model import LoadedModel
from lensdist.export.onnxruntime import import_onnxruntime
from lensdist.utils.errors import UserError

Runner = Callable[..., npt.NDArray[np.float32]]
"""Takes the file's inputs, as arrays, in their order; returns its output."""

_PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime")}


class Portable(nn.Module):
    """Preprocessing and network as one module with the inputs and the output of the file."""

    def __init__(self, model: LoadedModel) -> None:
        super().__init__()
        self.network, self._graph = model.network, model.does.graph

    def forward(self, image: Tensor, mask: Tensor | None = None) -> Tensor:
        more = () if mask is None else (mask,)
        return self._graph(self.network, image, *more)


def require(kind: str) -> None:
    """Check that a format's packages are installed.

    Raises:
        UserError: they are not.
    """
    missing = [name for name in _PACKAGES.get(kind, ()) if find_spec(name) is None]
    if missing:
        raise UserError(
            f"--format {kind} needs {', '.join(missing)}; pip install 'lensdist[export]'"
        )


def samples(model: LoadedModel, n: int, seed: int) -> dict[str, Tensor]:
    """Return inputs for testing a model, by name.

    They are n images of noise, with the train split's mean and deviation if the preprocessing has
    them, and the file's other inputs.
    """
    bands, size, _ = model.does.cfg.image_shape
    draw = torch.Generator().manual_seed(seed)
    mean, std = (
        torch.tensor(given if len(given) == bands else [default] * bands)[:, None, None]
        for given, default in ((model.preprocess.mean, 0.0), (model.preprocess.std, 1.0))
    )
    images = mean + std * torch.randn(n, bands, size, size, generator=draw)
    return model.does.file_inputs(images)


def write(model: LoadedModel, kind: str, folder: Path) -> tuple[dict[str, Any], Runner]:
    """Write `model.onnx` or `model.pt2` into a folder.

    Returns:
        Facts that the file's user needs, and a function that runs the file.

    Raises:
        UserError: the preprocessing cannot be a graph.
    """
    if model.preprocess.slow:
        raise UserError(
            f"--format {kind}: this model sees what preprocess.scale {model.preprocess.cfg.scale} "
            "leaves, step by step, of each image, which no graph holds; use --format safetensors"
        )
    inputs = samples(model, 2, 0)
    whole = Portable(model).eval().requires_grad_(False)
    # Call it once before tracing: constants that a first call makes and keeps would otherwise be
    # made during tracing, when tensors hold no numbers.
    shape = list(whole(*inputs.values()).shape)
    output = model.does.output or model.does.answer
    facts = {
        "inputs": {name: _spec(x.dtype, list(x.shape)) for name, x in inputs.items()},
        "outputs": {output: _spec(torch.float32, shape)},
        "includes_preprocessing": True,
        **model.does.file_facts(),
    }
    program = _trace(whole, tuple(inputs.values()))
    if kind == "onnx":
        opset, run = _write_onnx(program, list(inputs), output, folder / "model.onnx")
        return facts | {"opset": opset}, run
    path = folder / "model.pt2"
    # They would be kept as a pickle, the only one in the file.
    program._example_inputs = None
    torch.export.save(program, path)
    return facts | {
        "torch": torch.__version__,
        "container": "zip",
        "note": "torch.export.load unpickles what such a file may bring; load only files you trust",
    }, _pt2_runner(path)


def largest_difference(
    model: LoadedModel, run: Runner, sizes: tuple[int, ...] = (1, 3, 8)
) -> tuple[float, float]:
    """Compare a file's outputs with the model's own, on random images in batches of `sizes`.

    Returns:
        The largest absolute difference, and the largest absolute output of the model.
    """
    output = model.does.answer
    difference = scale = 0.0
    for seed, n in enumerate(sizes, start=1):
        inputs = [x.numpy() for x in samples(model, n, seed).values()]
        expected, found = model.predict(inputs[0])[output], run(*inputs)
        if found.shape != expected.shape or not np.isfinite(found).all():
            return float("inf"), 0.0
        difference = max(difference, float(np.abs(found - expected).max()))
        scale = max(scale, float(np.abs(expected).max()))
    return difference, scale


def _spec(dtype: torch.dtype, shape: list[int]) -> dict[str, Any]:
    return {"dtype": str(dtype).removeprefix("torch."), "shape": ["batch", *shape[1:]]}


def _trace(whole: nn.Module, inputs: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch")
    return torch.export.export(whole, inputs, dynamic_shapes=tuple({0: batch} for _ in inputs))


def _write_onnx(
    program: torch.export.ExportedProgram, names: list[str], output: str, path: Path
) -> tuple[int, Runner]:
    """Write the ONNX file; return the opset, and a function that runs the file."""
    onnxruntime = import_onnxruntime()

    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            written = torch.onnx.export(
                program,
                input_names=names,
                output_names=[output],
                dynamic_shapes=tuple({0: "batch"} for _ in names),
                dynamo=True,
                verbose=False,
            )
    finally:
        log.setLevel(level)
    assert written is not None
    written.save(path)  # above 2 GB, the format's limit, weights go to a second file
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(*inputs: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        fed = dict(zip(names, inputs, strict=True))
        return cast(npt.NDArray[np.float32], session.run(None, fed)[0])

    return int(written.model.opset_imports[""]), run


def _pt2_runner(path: Path) -> Runner:
    module = torch.export.load(path).module()

    @torch.no_grad()
    def run(*inputs: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        found: Tensor = module(*map(torch.from_numpy, inputs))
        return cast(npt.NDArray[np.float32], found.numpy())

    return run
