"""The base of tasks that may start from the encoder of a pretrained masked autoencoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from pydantic import Field

from lensdist.data.config import PreprocessConfig
from lensdist.models.config import EncoderConfig
from lensdist.tasks.base import Task
from lensdist.tasks.settings import Remedy, Shape, TaskSettings
from lensdist.tasks.types import Described, Inputs, ReadExport, Split, Stage, Start
from lensdist.utils.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lensdist.data.transforms import Preprocess


class EncoderSettings(TaskSettings):
    """The settings of a task that may start from a pretrained encoder."""

    encoder: Path | None = Field(
        None,
        description="The pretrained encoder: a finished run of task mae, or its export. null: "
        "random weights.",
    )
    frozen_epochs: int = Field(
        10,
        ge=0,
        le=10**12,
        description="The number of epochs at the start in which a pretrained encoder is frozen.",
    )

    @property
    def encoder_settings(self) -> tuple[EncoderConfig, str]:
        """The encoder's settings, and their key."""
        model: EncoderConfig = getattr(self, "model")  # noqa: B009, a field of the subclass
        return model, "model"

    def starts_from(self) -> dict[str, Path | tuple[Path, ...]]:
        return {} if self.encoder is None else {"encoder": self.encoder}

    def remedy(self, shape: Shape, read: ReadExport) -> Remedy | None:
        theirs = self._pretrained(read)
        if theirs is None:
            return super().remedy(shape, read)
        same = self.encoder_settings[1] != "model"  # a nested encoder's input is resized
        size, bands = theirs["image_size"], theirs["in_channels"]
        if bands != shape[0] or not (same or size == shape[1]):
            return Remedy(
                reason="no setting changes that, for its encoder was pretrained on "
                f"{bands}x{size}x{size}: pretrain one on such a set (task mae), or "
                "start from random weights with encoder=null"
            )
        if shape == self.image_shape:
            return None
        return self.fitting(shape, *() if same else (f"model.patch_size={theirs['patch_size']}",))

    def _pretrained(self, read: ReadExport) -> dict[str, int] | None:
        """Return the bands, image size and patch size of the pretrained encoder, if known."""
        if self.encoder is None:
            return None
        try:
            model = read(self.encoder)[0].get("model")
        except UserError:  # `start` gives the reason: it may not be finished
            return None
        fields = ("in_channels", "image_size", "patch_size")
        if not isinstance(model, dict) or not all(isinstance(model.get(f), int) for f in fields):
            return None
        return {field: model[field] for field in fields}


E = TypeVar("E", bound=EncoderSettings)


class EncoderTask(Task[E]):
    """The base class of tasks whose network has an `encoder`."""

    head: ClassVar[str]
    """The prefix of the parameters that train while the encoder is frozen."""

    @classmethod
    def start(cls, cfg: E, given: Inputs) -> Start:
        """Start from the pretrained encoder and its own preprocessing, which the run must share."""
        from lensdist.phases import WEIGHTS, check_finished

        if cfg.encoder is None:
            return super().start(cfg, given)
        check_finished(cfg.encoder, "encoder")
        described = given.read(cfg.encoder)
        theirs, weights = encoder_of(cfg.encoder, described, *cfg.encoder_settings)
        try:
            cfg.check_preprocess(theirs.cfg)
        except ValueError as e:
            raise UserError(
                f"encoder: {cfg.encoder} was pretrained with preprocessing that this task cannot "
                f"use ({e}); pretrain one with task mae and such a scale"
            ) from e
        refuse_other_preprocess(given.how, theirs, cfg.encoder)
        return Start(theirs, weights, described[0]["sha256"][WEIGHTS])

    def build(self) -> nn.Module:
        model: Any = self.network()
        if self.weights is not None:
            model.encoder.load_state_dict(self.weights)
        return model  # type: ignore[no-any-return]

    def stages(self, epochs: int) -> list[Stage]:
        # Freezing a random encoder would waste epochs, so from scratch everything trains.
        frozen = min(self.cfg.frozen_epochs, epochs) if self.weights is not None else 0
        stages = [Stage(frozen, (self.head,)), Stage(epochs - frozen, ("",))]
        return [stage for stage in stages if stage.epochs]

    def compared(self, model: nn.Module) -> Sequence[nn.Module] | None:
        whole: Any = model
        return [whole.head] if self.head == "head." else super().compared(model)

    @property
    def init(self) -> str:
        return "random" if self.weights is None else "mae"


def split_encoder(model: nn.Module, trains: Callable[[str], bool]) -> Split | None:
    """Cut a classifier, or another head on pooled tokens, after its frozen encoder."""
    from lensdist.models.split import Part

    whole: Any = model
    if any(trains(f"encoder.{name}") for name, _ in whole.encoder.named_parameters()):
        return None
    return Split(Part(whole, lambda x: (whole.pooled(x),)), Part(whole, whole.head))


def encoder_of(
    path: Path, described: Described, wanted: EncoderConfig, key: str = "model"
) -> tuple[Preprocess, dict[str, Tensor]]:
    """Return preprocessing and encoder weights of a pretrained model, for a network of its shape.

    Raises:
        UserError: it has no encoder, or one of another shape than the configuration has at `key`.
    """
    from lensdist.data.config import PREPROCESS
    from lensdist.data.transforms import Preprocess
    from lensdist.utils.tensors import under

    description, weights = described
    model = description["model"]
    if "patch_size" not in model:
        raise UserError(
            f"{path} is of task {description['task']}; give a run of task mae as encoder"
        )
    # An older export may lack a field that had no other value then than its default.
    fields = EncoderConfig.model_fields.items()
    theirs = {field: model.get(field, known.get_default()) for field, known in fields}
    odd = [f for f in theirs if f != "dropout" and theirs[f] != getattr(wanted, f)]
    if odd:
        first = odd[0]
        raise UserError(
            f"the encoder in {path} has {first} {theirs[first]} but {key}.{first} is "
            f"{getattr(wanted, first)}; set {' '.join(f'{key}.{f}={theirs[f]}' for f in odd)}"
        )
    preprocess = Preprocess.from_state(description["preprocessing"], under(PREPROCESS, weights))
    return preprocess, under("encoder.", weights)


def refuse_other_preprocess(how: PreprocessConfig, theirs: Preprocess, where: Path) -> None:
    """Check that a run preprocesses images as the pretrained network in `where` expects.

    Raises:
        UserError: it does not.
    """
    if theirs.cfg != how:
        raise UserError(
            f"preprocess: {how} is not what {where} was trained with, {theirs.cfg}; use that"
        )
