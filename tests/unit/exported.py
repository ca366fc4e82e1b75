"""An exported model with random weights, for tests of what is done with one."""

from __future__ import annotations

from pathlib import Path

import torch

from lensdist.data.config import PreprocessConfig
from lensdist.data.transforms import Preprocess
from lensdist.export.artifact import write_export
from lensdist.models.classifier import Classifier
from lensdist.models.config import ClassifierConfig, MaeConfig
from lensdist.models.mae import MaskedAutoencoder
from lensdist.sim.config import SimConfig
from lensdist.sim.simulator import Simulator

LABELS = ("no_sub", "cdm", "axion")
SHAPE = {"patch_size": 8, "dim": 16, "depth": 1, "heads": 2, "mlp_dim": 16}


def write_model(
    folder: Path, task: str = "finetune", labels: tuple[str, ...] = LABELS, size: int = 64
) -> Path:
    """`folder/export`: a classifier whose logits differ from image to image, or an autoencoder."""
    torch.manual_seed(0)
    preprocess = Preprocess(PreprocessConfig(scale="minmax"), [0.0], [1.0])
    model: MaskedAutoencoder | Classifier
    if task == "mae":
        mae = MaeConfig(**SHAPE, image_size=size, decoder_dim=16)
        cfg, model = mae.model_dump(mode="json"), MaskedAutoencoder(mae)
    else:
        classifier = ClassifierConfig(**SHAPE, image_size=size)
        cfg, model = classifier.model_dump(mode="json"), Classifier(classifier, len(labels))
        if size == 64:
            _tell_images_apart(model, preprocess)
    description = {
        "task": task, "preset": "test", "labels": list(labels), "metrics": {}, "model": cfg,
        "preprocessing": preprocess.state(), "mask": {"ratio": 0.25},
    }  # fmt: skip
    write_export(folder / "export", model, description)
    return folder


@torch.no_grad()
def _tell_images_apart(model: Classifier, preprocess: Preprocess) -> None:
    """Standardise the logits over some lenses: as a network starts, all images look alike to it."""
    lenses = Simulator(SimConfig(family="model_ii")).batch(0, torch.arange(60))["image"]
    logits = model.eval()(preprocess(lenses))
    last = model.head[-1]
    assert isinstance(last, torch.nn.Linear)
    std, mean = torch.std_mean(logits, 0)
    last.weight.div_(std[:, None])
    last.bias.sub_(mean).div_(std)
