"""Export a trained model in another format or place, checked before it is published.

DEST/config.json         labels, preprocessing, metrics, and the largest difference from the
                         original: {"checked": {"max_abs_difference": …, "images": …}}
     model.safetensors   lensdist's own format, which `lensdist.load` reads
  or model.onnx          see `lensdist.export.portable`
  or model.pt2
     README.md           the model card, with the scores of `RUN/eval`
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from lensdist.data.config import PREPROCESS
from lensdist.export.artifact import CONFIG, FORMAT, read_export, write_export
from lensdist.export.card import scored, write_card
from lensdist.export.from_checkpoint import at_step, exported, steps_of
from lensdist.export.model import LoadedModel
from lensdist.export.portable import Runner, largest_difference, require, write
from lensdist.export.several import together
from lensdist.phases import WEIGHTS, checkpoint_name
from lensdist.tasks.registry import task_class
from lensdist.tasks.types import Described
from lensdist.utils.errors import RunError
from lensdist.utils.files import fsync, sha256, to_json, write_atomic
from lensdist.utils.sealed import read_json, sealed, unsealed
from lensdist.utils.staging import Staging

TOLERANCE = 1e-4
"""Largest allowed difference from the original's outputs, relative to the largest of these."""

_BATCHES = (1, 3, 8)


@dataclass(frozen=True)
class Written:
    """One exported model.

    Attributes:
        path: its folder.
        difference: largest absolute difference from the original's outputs on random images.
        scale: largest absolute output of the original on these.
    """

    path: Path
    difference: float
    scale: float


def export_run(run: Path, dest: Path, kind: str, step: int | str | None) -> list[Written]:
    """Export a finished run's model, or those of checkpoints, or an export again.

    Args:
        run: a run, or (for `step` None) an export.
        dest: the folder to create; with `step` "all" it holds a folder for each step.
        kind: `safetensors`, `onnx` or `pt2`.
        step: step of the checkpoint; "all": every kept one; None: the model that validation chose.

    Raises:
        UserError: no such run or step, something is damaged, `dest` is not free, or a package
            is missing; nothing was written.
        RunError: the result's outputs differ from the original's, or it could not be written;
            nothing was published.
    """
    require(kind)
    wanted: dict[str, Callable[[], Described]]
    if step is None:
        wanted = {"": partial(exported, run)}
    elif step == "all":
        steps = steps_of(run, None)
        wanted = {checkpoint_name(number): partial(at_step, run, number) for number in steps}
    else:
        (number,) = steps_of(run, int(step))
        wanted = {"": partial(at_step, run, number)}
    return publish(dest, kind, wanted.items(), run)


def export_ensemble(runs: list[Path], dest: Path, kind: str, how: str) -> list[Written]:
    """Export one ensemble of separately trained networks.

    Args:
        runs: finished runs of task common, or their exports.
        dest: the folder to create.
        kind: `safetensors`, `onnx` or `pt2`.
        how: the mean of the members' `logits`, or of their `probabilities`.

    Raises:
        UserError: as `export_run`; or the runs cannot be combined.
        RunError: as `export_run`.
    """
    require(kind)

    def combined() -> Described:
        found = [(run, exported(run)) for run in runs]
        description, weights = task_class(found[0][1][0]["task"]).combine(found, how)
        if (likeness := together([each for _, each in found])) is not None:
            description = {**description, "likeness": likeness.state()}
            weights = {**weights, **likeness.tensors()}
        return description, weights

    return publish(dest, kind, [("", combined)])


def publish(
    dest: Path,
    kind: str,
    models: Iterable[tuple[str, Callable[[], Described]]],
    run: Path | None = None,
) -> list[Written]:
    """Write models into folders of `dest`, by name ("" is `dest` itself), all or none.

    `run` is the one that they come from, whose scores the cards show.

    Raises: as `export_run`.
    """
    staging = Staging(dest)
    written = []
    try:
        for name, read in models:
            folder = staging.folder / name
            folder.mkdir(exist_ok=True)
            difference, scale = _write_one(folder, kind, *read(), run)
            written.append(Written(dest / name, difference, scale))
        staging.publish()
    except OSError as e:
        raise RunError(f"{dest} cannot be written: {e.strerror or e}; nothing is left of it") from e
    finally:
        staging.discard()  # the published folder has another name by now
    return written


def _write_one(
    folder: Path,
    kind: str,
    description: dict[str, Any],
    weights: dict[str, Tensor],
    origin: Path | None,
) -> tuple[float, float]:
    model = LoadedModel(description, weights, "cpu")
    source = description.pop("sha256", {}).get(WEIGHTS)
    if source is not None:
        description["exported_from"] = {WEIGHTS: source}
    run: Runner
    if kind == "safetensors":
        own = {k[len(PREPROCESS) :]: v for k, v in weights.items() if k.startswith(PREPROCESS)}
        write_export(folder, model.network, description, own, model.likeness)
        copy, output = LoadedModel(*read_export(folder), "cpu"), model.does.answer

        def run(image: Any, *_: Any) -> Any:
            return copy.predict(image)[output]

        facts = unsealed(read_json(folder / CONFIG))
    else:
        more, run = write(model, kind, folder)
        files = {path.name: sha256(path) for path in sorted(folder.iterdir())}
        facts = {**description, "format": FORMAT, "kind": kind, **more, "sha256": files}
    difference, scale = largest_difference(model, run, _BATCHES)
    if not difference <= TOLERANCE * scale:
        raise RunError(
            f"{kind}: outputs differ by {difference:.3g} from the original's, which reach "
            f"{scale:.3g}; nothing was written, please report it with this model's config.json"
        )
    facts["checked"] = {
        "max_abs_difference": difference, "max_abs_output": scale, "images": sum(_BATCHES),
    }  # fmt: skip
    write_atomic(folder / CONFIG, to_json(sealed(facts)))
    write_card(folder, kind, model, facts, scored(origin, source) if origin else {})
    for path in [*folder.iterdir(), folder]:
        fsync(path)
    return difference, scale
