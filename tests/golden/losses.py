"""What every preset learns in its first 20 steps at a tiny size, as text: losses, scores, weights.

    python -m tests.golden.losses            # makes tests/golden/losses/*.txt again
    python -m tests.golden.losses DEST       # somewhere else

A preset keeps all that decides what is learned (loss, masking, freezing, schedule, optimizer,
averaging, preprocessing, augmentation). Networks, images and batches shrink, two micro-batches make
a step, and stages change within the 20 steps. All runs on kernels that every x86 processor of the
last ten years has, in float32. The common task's networks run in float64: BatchNorm over a few
values makes rounding errors grow.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file
from torch import nn

from lensdist.config import load
from lensdist.config.schema import schema_of
from lensdist.tasks.ensemble import EnsembleTask as CommonTask
from lensdist.train import main as main_of_train

# Set before torch is imported: by default it takes the processor's newest kernels, which round
# in other ways.
PORTABLE = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_CBWR": "COMPATIBLE",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "OMP_NUM_THREADS": "1",
    "ACCELERATE_USE_CPU": "true",
}
ROOT = Path(__file__).resolve().parents[2]
FILES = Path(__file__).with_name("losses")
PRESETS = sorted(
    f"{file.parent.name}/{file.stem}"
    for task in ("mae", "finetune", "mass", "common", "sr")
    for file in (ROOT / "configs" / task).glob("*.yaml")
)
STEPS = 20
# Of three images, they jump with the last bit of one; or they are times.
_UNSTEADY = {"time", "seconds", "accuracy", "auc_macro", "ece"}
_ENCODER = {"dim": 32, "depth": 1, "heads": 2, "mlp_dim": 32}


def groups() -> dict[str, list[str]]:
    """Presets that are the same at this size, each group under the name of its first."""
    found: dict[str, list[str]] = {}
    for preset in PRESETS:
        found.setdefault(json.dumps(_settings(preset), sort_keys=True), []).append(preset)
    return {presets[0]: presets for presets in found.values()}


def _settings(preset: str) -> dict[str, Any]:
    """All that decides what a preset learns here."""
    words = words_of(preset, Path("run"), None)
    cfg = load(Path(words[1]), words[2:], schema=schema_of).model_dump(mode="json")
    file = ROOT / "configs" / f"{preset}.yaml"
    encoder = getattr(load(file, [], schema=schema_of), "encoder", None)
    return {**cfg, "preset": "", "encoder": encoder and _settings(_preset_of(encoder))}


def words_of(preset: str, run: Path, encoder: Path | None) -> list[str]:
    """The command line that trains a preset at a tiny size."""
    file = ROOT / "configs" / f"{preset}.yaml"
    cfg: Any = load(file, [], schema=schema_of)
    task = cfg.task
    changed: dict[str, Any] = {
        "run.dir": run,
        "engine": "ddp",
        "precision": "no",
        "data.n_per_class": 10 * (3 // len(cfg.data.classes or "123")),
        "data.stream_epoch": 24,
        "train.epochs": 7,
        "train.max_steps": STEPS,
        "train.select_from": "best",
        "train.global_batch": 8,
        "train.micro_batch": 4,
        "train.log_every": 1,
        "train.eval_every_epochs": 2,
        "train.eval_batch": 5,
        "optim.schedule.warmup_steps": min(5, cfg.optim.schedule.warmup_steps),
        "optim.schedule.step_epochs": 2,
        "preprocess.components": 12,
        "checkpoint.every_steps": 9,
        "checkpoint.every_epochs": 2,
    }
    if task in ("mae", "finetune", "mass"):
        changed |= {f"model.{key}": value for key, value in _ENCODER.items()}
    if task == "mae":
        changed |= {"model.decoder_dim": 32, "model.decoder_depth": 1}
    if task == "sr":
        changed |= {f"model.encoder.{key}": value for key, value in _ENCODER.items()}
        changed |= {"model.width": 8, "model.depth": 1}
    if task in ("finetune", "mass", "sr"):
        changed |= {"encoder": encoder or "null", "frozen_epochs": min(2, cfg.frozen_epochs)}
    if task == "common":
        changed |= {"init": "random", "unfreeze_epochs": "null", "cache.max_gb": 0}
        # Lenses are fitted 16 at a time, however few there are.
        changed |= {"model.resize": 32, "train.eval_batch": 12}
        if cfg.model.members != ("lensnet",):
            two = len(cfg.model.members) > 1
            members = "[shufflenet_v2_x0_5, lensnet]" if two else "[shufflenet_v2_x0_5]"
            changed |= {"model.members": members, "model.head_dims": "[16, 8]"}
    return ["--config", str(file), *(f"{key}={value}" for key, value in changed.items())]


def made(preset: str, folder: Path) -> str:
    """Train a preset, after its encoder's; what it learned as text."""
    run = folder / preset.replace("/", "-")
    wanted = getattr(
        load(ROOT / "configs" / f"{preset}.yaml", [], schema=schema_of), "encoder", None
    )
    if wanted is not None:
        made(_preset_of(wanted), folder)
    code = main_of_train(words_of(preset, run, wanted and folder / wanted.name))
    assert code == 0, f"{preset}: exit code {code}"
    return _text(run)


def _preset_of(encoder: Path) -> str:
    return encoder.name.replace("-", "/", 1)  # runs/mae-small


def _text(run: Path) -> str:
    lines = []
    for line in (run / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row["kind"] == "train":
            lines.append(f"step {row['step']} lr {row['lr']!r} loss {row['loss']!r}")
        elif row["kind"] == "val":
            shares = {"coverage_68", "coverage_95"} if "rmse" in row else set()  # of three images
            odd = _UNSTEADY | shares
            known = {k: v for k, v in row.items() if isinstance(v, float) and k not in odd}
            lines.append(f"val {row['step']} " + " ".join(f"{k} {v!r}" for k, v in known.items()))
    exported = json.loads((run / "export/config.json").read_text())
    lines.append(f"export step {exported['metrics']['step']}")
    for name, tensor in sorted(load_file(run / "export/model.safetensors").items()):
        if tensor.ndim > 1 and not name.startswith("preprocess."):
            lines.append(f"{name} {float((tensor.astype('float64') ** 2).sum() ** 0.5)!r}")
    return "\n".join(lines) + "\n"


def in_float64() -> None:
    """Let networks of the common task compute in float64, whatever they are given."""
    build = CommonTask.build

    def doubled(self: CommonTask) -> nn.Module:
        model = build(self).double()
        model.register_forward_pre_hook(lambda _, given: tuple(x.double() for x in given))
        return model

    CommonTask.build = doubled  # type: ignore[method-assign]


def make(dest: Path) -> None:
    """Write a file for each group of presets."""
    dest.mkdir(exist_ok=True)
    in_float64()
    gc.freeze()  # accelerate collects garbage at each stage: seconds, of what will never be any
    with tempfile.TemporaryDirectory() as folder:
        for first, presets in groups().items():
            found = made(first, Path(folder))
            path = dest / f"{first.replace('/', '-')}.txt"
            path.write_text(f"# {' '.join(presets)}\n{found}")


def in_child(dest: Path) -> subprocess.CompletedProcess[str]:
    """Call `make` in a process that takes the portable kernels."""
    words = [sys.executable, "-c", f"from {__spec__.name} import *; make(Path(sys.argv[1]))", dest]
    environment = {**os.environ, **PORTABLE}
    return subprocess.run(
        words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


if __name__ == "__main__":
    done = in_child(Path(sys.argv[1]) if sys.argv[1:] else FILES)
    print(done.stderr[-2000:] if done.returncode else "made", file=sys.stderr)
    sys.exit(done.returncode)
