"""Trained models for those who do not have lensdist: ONNX, and PyTorch's own `torch.export`.

Either file holds preprocessing and network as one graph, with any number of images a batch:

    classifier           image (N, C, H, W) float32                       -> logits (N, classes)
    masked autoencoder   image, and mask (N, patches) bool, true = hidden -> recon (N, C, H, W)
    super-resolution     image (N, C, H, W) of the trained size     -> enlarged (N, C, f H, f W)

Images, drawn ones too, are in the units found on disk. Neither file is a pickle, but
`torch.export.load` unpickles whatever somebody else's `.pt2` brings (torch 2.13: tensors marked
so, constants and example inputs, with `weights_only=False`), which may be a program: load only
those that come from where you trust programs. An ONNX file cannot run any.
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

from lensdist.data.transforms import Preprocess
from lensdist.errors import UserError
from lensdist.exporting._onnxruntime import import_onnxruntime
from lensdist.loaded import LoadedModel
from lensdist.models.config import masked_count
from lensdist.models.mae import MaskedAutoencoder, pixel_mask
from lensdist.models.masking import make_mask

Runner = Callable[..., npt.NDArray[np.float32]]
"""Takes the file's inputs, as arrays, in their order; returns its output."""

_OUTPUTS = {"mae": "recon", "sr": "enlarged"}  # of a file; of classifiers, logits

_PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime")}


class PortableClassifier(nn.Module):
    """Images as on disk (N, C, H, W) -> logits (N, classes)."""

    def __init__(self, preprocess: Preprocess, network: nn.Module) -> None:
        super().__init__()
        self.preprocess, self.network = preprocess, network

    def forward(self, image: Tensor) -> Tensor:
        return cast(Tensor, self.network(self.preprocess(image)))


class PortableAutoencoder(nn.Module):
    """Images as on disk (N, C, H, W), mask (N, patches) -> images drawn (N, C, H, W), in that unit.

    Args:
        preprocess: from disk to network and back.
        network: the autoencoder.
        hidden: patches that every row of a mask hides. The token decoder computes the others only,
            and their number is part of the graph.
        keep_shown: the network was trained on hidden pixels only, so the others are the image's.
    """

    def __init__(
        self, preprocess: Preprocess, network: MaskedAutoencoder, hidden: int, keep_shown: bool
    ) -> None:
        super().__init__()
        self.preprocess, self.network = preprocess, network
        self.hidden, self.keep_shown = hidden, keep_shown

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        x = self.preprocess(image)
        drawn = self._draw(x, mask)
        if self.keep_shown:
            drawn = torch.where(pixel_mask(mask, self.network.cfg.patch_size), drawn, x)
        return self.preprocess.inverse(drawn, image)

    def _draw(self, x: Tensor, mask: Tensor) -> Tensor:
        network = self.network
        if network.cfg.decoder == "upconv":
            return cast(Tensor, network(x, mask))
        # What the network does, but for its stable sort, which ONNX lacks: numbers that all differ
        # need none.
        x = torch.where(pixel_mask(mask, network.cfg.patch_size), 0.0, x)
        patches = mask.shape[1]
        place = mask.to(torch.int64) * patches + torch.arange(patches, device=mask.device)
        keep = place.topk(patches - self.hidden, dim=1, largest=False).indices
        return cast(Tensor, network.decoder(network.encoder(x, keep), keep))


class PortableSuperResolver(nn.Module):
    """Images as on disk (N, C, H, W) -> enlarged (N, C, f H, f W) in that unit, without sigma."""

    def __init__(self, preprocess: Preprocess, network: nn.Module) -> None:
        super().__init__()
        self.preprocess, self.network = preprocess, network

    def forward(self, image: Tensor) -> Tensor:
        drawn = self.network(self.preprocess(image))
        return self.preprocess.inverse(drawn[:, : image.shape[1]], image)


def answer_of(model: LoadedModel) -> str:
    """What `predict` calls the answer that a file in another format gives too."""
    return {"mae": "recon", "sr": "image"}.get(model.task, "logits")


def require(kind: str) -> None:
    """Make sure that a format's packages are there.

    Raises:
        UserError: they are not.
    """
    missing = [name for name in _PACKAGES.get(kind, ()) if find_spec(name) is None]
    if missing:
        raise UserError(
            f"--format {kind} needs {', '.join(missing)}; pip install 'lensdist[export]'"
        )


def as_module(model: LoadedModel) -> nn.Module:
    """Preprocessing and network as one module, in eval mode."""
    whole: nn.Module
    if model.task == "mae":
        network = cast(MaskedAutoencoder, model.network)
        keep_shown = model.description.get("loss") == "masked"
        whole = PortableAutoencoder(model.preprocess, network, _hidden(model), keep_shown)
    elif model.task == "sr":
        whole = PortableSuperResolver(model.preprocess, model.network)
    else:
        whole = PortableClassifier(model.preprocess, model.network)
    return whole.eval().requires_grad_(False)


def samples(model: LoadedModel, n: int, seed: int) -> tuple[Tensor, ...]:
    """Inputs to try a model on: n images of noise, of the train split's mean and deviation where
    the preprocessing knows them, and masks where the model takes one.
    """
    size, bands = (model.description["model"][k] for k in ("image_size", "in_channels"))
    draw = torch.Generator().manual_seed(seed)
    mean, std = (
        torch.tensor(given if len(given) == bands else [default] * bands)[:, None, None]
        for given, default in ((model.preprocess.mean, 0.0), (model.preprocess.std, 1.0))
    )
    images = mean + std * torch.randn(n, bands, size, size, generator=draw)
    if model.task != "mae":
        return (images,)
    return images, make_mask(
        model.preprocess(images), model.description["model"]["patch_size"], model.mask, 0,
        torch.zeros(n, dtype=torch.int64),
    )  # fmt: skip


def write(model: LoadedModel, kind: str, folder: Path) -> tuple[dict[str, Any], Runner]:
    """Write `model.onnx` or `model.pt2` into a folder.

    Returns:
        What whoever uses the file has to know, and a way to run the file as they would.

    Raises:
        UserError: the preprocessing is no graph.
    """
    if model.preprocess.slow:
        raise UserError(
            f"--format {kind}: this model sees what preprocess.scale {model.preprocess.cfg.scale} "
            "leaves, step by step, of each image, which no graph holds; use --format safetensors"
        )
    inputs = samples(model, 2, 0)
    whole = as_module(model)
    # Once before it is traced: constants that a first call makes and keeps would else be made while
    # tracing, when tensors hold no numbers.
    shape = list(whole(*inputs).shape)
    names = ["image", "mask"][: len(inputs)]
    output = _OUTPUTS.get(model.task, "logits")
    facts = {
        "inputs": {n: _spec(x.dtype, list(x.shape)) for n, x in zip(names, inputs, strict=True)},
        "outputs": {output: _spec(torch.float32, shape)},
        "includes_preprocessing": True,
    }
    if model.task == "mae" and model.description["model"].get("decoder") == "tokens":
        facts["hidden_patches"] = _hidden(model)  # every row of a mask must hide so many
    program = _trace(whole, inputs)
    if kind == "onnx":
        opset, run = _write_onnx(program, names, output, folder / "model.onnx")
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
    """How far a file's outputs are from the model's own, on random images in batches of `sizes`.

    Returns:
        The largest absolute difference, and the largest absolute output of the model.
    """
    output = answer_of(model)
    difference = scale = 0.0
    for seed, n in enumerate(sizes, start=1):
        inputs = [x.numpy() for x in samples(model, n, seed)]
        expected, found = model.predict(inputs[0])[output], run(*inputs)
        if found.shape != expected.shape or not np.isfinite(found).all():
            return float("inf"), 0.0
        difference = max(difference, float(np.abs(found - expected).max()))
        scale = max(scale, float(np.abs(expected).max()))
    return difference, scale


def _hidden(model: LoadedModel) -> int:
    size, patch = (model.description["model"][k] for k in ("image_size", "patch_size"))
    return masked_count(model.mask, (size // patch) ** 2)


def _spec(dtype: torch.dtype, shape: list[int]) -> dict[str, Any]:
    return {"dtype": str(dtype).removeprefix("torch."), "shape": ["batch", *shape[1:]]}


def _trace(whole: nn.Module, inputs: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch")
    return torch.export.export(whole, inputs, dynamic_shapes=tuple({0: batch} for _ in inputs))


def _write_onnx(
    program: torch.export.ExportedProgram, names: list[str], output: str, path: Path
) -> tuple[int, Runner]:
    """Returns the opset, and a way to run the file."""
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
    written.save(path)  # above 2 GB, the format's limit, weights go to a file beside it
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
