"""The interface of a task: all that is particular to one thing that can be trained.

The training loop, evaluation, `predict`, `export` and the launcher call it. A task uses no process
group, no file of a run and no tracker.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from lensdist.data.config import AugmentConfig, DataConfig, PreprocessConfig
from lensdist.tasks.settings import Choice, TaskSettings
from lensdist.tasks.types import (
    Answer,
    Batch,
    Columns,
    Described,
    Drawing,
    Inputs,
    Split,
    Stage,
    Start,
)
from lensdist.utils.errors import UserError
from lensdist.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lensdist.data.dataset import PackedSet
    from lensdist.data.transforms import Preprocess
    from lensdist.distributed.context import DistributedContext

S = TypeVar("S", bound=TaskSettings)


class Task(ABC, Generic[S]):
    """The base class of all tasks.

    A subclass defines `settings`, `answer` and the abstract methods; all else has a default.

    Args:
        cfg: the task's settings.
        labels: the classes of the data, in order.
        preprocess: from the units on disk to what the network sees.
        weights: the weights to start from, by the network's parameter names; None: random ones.
        augment: the augmentation of training images; None: none.
        seed: the seed of the random numbers that the evaluation draws.
        thorough: whether to compute scores that take longer than the network does.
    """

    name: ClassVar[str]
    """The task's name in configurations and exports."""
    settings: ClassVar[type[TaskSettings]]
    """The class of the settings."""
    answer: ClassVar[str]
    """The name of the main array that `predict` returns; exported files return it too."""
    output: ClassVar[str] = ""
    """The name of that array in an exported file, if it is different."""
    draws: ClassVar[tuple[str, ...]] = ()
    """The images that `predict` writes to files, the main one first; empty: it writes a table."""
    needs_labels: ClassVar[bool] = False
    """Whether training and scoring need a class for every image."""
    pairs: ClassVar[bool] = False
    """Whether every image has a larger one to learn (`target`)."""
    wants_truth: ClassVar[bool] = False
    """Whether a set that a run simulates also holds the images without noise."""
    any_size: ClassVar[bool] = False
    """Whether a trained model takes images of other sizes than in training."""
    pools_pixels: ClassVar[bool] = False
    """Whether the loss is a mean over the pixels of a micro-batch, not over its images."""
    figures: ClassVar[tuple[str, ...]] = ()
    """File names that `draw` writes."""
    harder: ClassVar[tuple[str, ...]] = ()
    """The variants of `lensdist evaluate --hard` that make sense, `plain` first."""
    incomplete: ClassVar[tuple[str, ...]] = ()
    """Outputs that are NaN where the set does not know them."""
    averages_views: ClassVar[bool] = False
    """Whether predictions for rotated and mirrored images can be averaged (`--tta`)."""

    def __init__(
        self,
        cfg: S,
        labels: tuple[str, ...],
        preprocess: Preprocess,
        weights: dict[str, Tensor] | None = None,
        *,
        augment: AugmentConfig | None = None,
        seed: int = 0,
        thorough: bool = False,
    ) -> None:
        self.cfg = cfg
        self.labels = labels
        self.preprocess = preprocess
        self.weights = weights
        self.seed = seed
        self.thorough = thorough
        self._augment = augment

    # ---- before training

    @classmethod
    def check_settings(cls, cfg: S, how: PreprocessConfig, world: DistributedContext) -> None:
        """Raise UserError, before data exist, if there is no such network or it has no weights."""

    @classmethod
    def check_data(cls, cfg: S, packed: PackedSet, data: DataConfig) -> None:
        """Raise UserError if a set lacks data that training needs."""

    @classmethod
    def check_scored(cls, cfg: S, packed: PackedSet) -> None:
        """Raise UserError if a set lacks data that the scores need."""

    @classmethod
    def start(cls, cfg: S, given: Inputs) -> Start:
        """Read or fit the preprocessing, and read the weights to start from.

        Raises:
            UserError: a run that the settings name is missing, not finished, or of another shape.
        """
        from lensdist.data.smooth import fit_smooth
        from lensdist.data.transforms import Preprocess

        how, statistics = given.how, given.packed.manifest.statistics
        smooth = fit_smooth(given.packed, how) if how.scale == "residual" else None
        return Start(Preprocess(how, statistics.mean, statistics.std, smooth))

    # ---- training

    @property
    def select(self) -> Choice:
        """The validation score that selects the best checkpoint, and which way is better."""
        return self.cfg.selects

    @abstractmethod
    def network(self) -> nn.Module:
        """Build the network, with weights drawn from torch's global generator."""

    def build(self) -> nn.Module:
        """Build the network with the weights that training starts from."""
        model = self.network()
        if self.weights is not None:
            unknown = model.load_state_dict(self.weights, strict=False).unexpected_keys
            assert not unknown, unknown  # `start` has renamed and checked them
        return model

    def stages(self, epochs: int) -> list[Stage]:
        """Divide the training into stages; their epochs add up to `epochs`.

        Raises:
            UserError: there are too few epochs.
        """
        return [Stage(epochs, ("",))]

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch, key: int) -> Tensor:
        """Compute the mean loss of a micro-batch; `key` seeds its random numbers."""

    def augmented(self, batch: Batch, key: int) -> Batch:
        """Rotate and mirror the images of a batch at random, with their targets and masks."""
        from lensdist.data.augment import augment
        from lensdist.utils import rng

        return augment(self._augment, rng.key(key, "augment"), batch) if self._augment else batch

    def forward(self, model: nn.Module, batch: Batch, key: int) -> Tensor:
        """Apply the network to a training batch: its augmented images, or their kept features."""
        if "features.0" in batch:  # what `split`'s trunk returns of the images, already augmented
            features = sorted(name for name in batch if name.startswith("features."))
            return model(*(batch[name] for name in features))  # type: ignore[no-any-return]
        return model(self.image(self.augmented(batch, key)))  # type: ignore[no-any-return]

    def image(self, batch: Batch) -> Tensor:
        """Return the preprocessed images of a batch: (B, C, H, W)."""
        from lensdist.data.masks import good_pixels

        if "seen" in batch:  # prepared once, for every epoch
            return batch["seen"]
        return self.preprocess(batch["image"], good_pixels(batch))

    def split(self, model: nn.Module, trains: Callable[[str], bool]) -> Split | None:
        """Cut the network where its frozen part ends; None: nothing is frozen.

        The `loss` of a task that cuts also accepts `Split.rest` as the model, with a batch that
        holds `features.0` and so on in place of images, as `forward` does. `trains` returns
        whether the parameter of a name trains.
        """
        return None

    def view(self, samples: Tensor, key: int) -> Tensor:
        """Return the number of the augmented view of each sample for this step: (B,) int64."""
        from lensdist.data.augment import draw_views
        from lensdist.utils import rng

        assert self._augment is not None
        return draw_views(self._augment, rng.key(key, "augment"), samples)

    # ---- scores

    @abstractmethod
    def outputs(self, model: nn.Module, batch: Batch) -> Batch:
        """Compute the outputs that scoring needs: tensors with a leading batch axis."""

    @abstractmethod
    def score(self, outputs: Batch) -> dict[str, Any]:
        """Compute the scores from the outputs of all samples of a split."""

    def intervals(self, outputs: Batch) -> dict[str, Any]:
        """Compute 95 % confidence intervals of scores, as `<score>_ci`."""
        return {}

    def not_computed(self) -> list[str]:
        """Return the names of scores that are left out because there are too many classes."""
        return []

    def average(self, outputs: Batch, views: Sequence[Batch]) -> dict[str, Any]:
        """Score the mean prediction over all views of each image; `outputs` is the first view."""
        raise NotImplementedError

    def compare(self, outputs: Batch, plain: Batch) -> dict[str, Any]:
        """Compare outputs with those of the same lenses in the plain variant, image by image."""
        return {}

    @staticmethod
    def each(outputs: Batch) -> dict[str, Tensor]:
        """Return the scores of each image by which runs are compared, (N,) by their names."""
        return {}

    def mistakes(self, outputs: Batch, most: int) -> list[tuple[int, dict[str, str]]]:
        """Return the images that are answered worst, the worst first, and what to say of each."""
        return []

    def draw(self, what: Drawing) -> tuple[dict[str, Any], list[Path]]:
        """Draw a split's figures; return more scores, such as drawn curves, and the files."""
        return {}, []

    # ---- use of a trained model

    def skeleton(self, tensors: Mapping[str, Tensor]) -> nn.Module:
        """Build the network on torch's default device; ValueError if `tensors` do not fit it."""
        return self.network()

    def predict(
        self, model: nn.Module, raw: Tensor, good: Tensor | None, batch: int
    ) -> dict[str, Tensor]:
        """Predict for images in the units found on disk: tensors (N, …) by name.

        Args:
            model: the trained network.
            raw: (N, C, H, W).
            good: bool, of the shape of `raw`; false where a pixel is bad. None: all are good.
            batch: tiles at a time, for tasks that cut images into tiles.
        """
        seen, measured = self.examined(raw, good)
        return {self.answer: model(seen), **measured}

    def examined(self, raw: Tensor, good: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the network's input, and columns and `flag` of `Preprocess.examine`, if any."""
        found = self.preprocess.examine(raw, good)
        return found.seen, found.columns | ({"flag": found.flagged} if found.columns else {})

    @property
    def columns(self) -> Columns:
        """The columns of `predict`'s table, without the file's name."""
        return {self.answer: float}

    def row(self, answer: Answer) -> list[str | float]:
        """Return the table's row for one image."""
        return [float(x) for x in answer[self.answer].ravel()]

    @property
    def claims(self) -> frozenset[str]:
        """The columns that are empty, or `?`, for images unlike those of training."""
        return frozenset(self.columns)

    def compared(self, model: nn.Module) -> Sequence[nn.Module] | None:
        """Return the layers whose inputs tell whether an image is like the training images.

        None: predictions do not say; nor do they if `outputs` or `predict` call `model` other than
        once for all images of a batch, in their order.
        """
        from lensdist.models.split import last_linear

        return None if self.any_size else last_linear(model)

    def embed(self, model: nn.Module, seen: Tensor) -> Tensor | None:
        """Compute features (B, D) of preprocessed images, by default the inputs of `compared`."""
        from lensdist.models.split import entering

        return entering(model, self.compared(model) or (), seen)

    def attention(self, model: nn.Module, seen: Tensor) -> Tensor | None:
        """Compute where the network looks, (B, H, W) from 0 to 1; None: see `models.looks`."""
        from lensdist.models.looks import looks

        return looks(model, seen)

    def history(self, factor: int) -> list[str]:
        """Return lines for the header of an output image that is `factor` times as large."""
        return []

    # ---- exports

    def describe(self) -> dict[str, Any]:
        """Return the settings that an exported model needs besides its weights, as JSON."""
        kept = self.cfg.model_dump(mode="json", include=set(self.cfg.described))
        return {**kept, "init": self.init}

    def settle(self, outputs: Callable[[], Batch]) -> None:
        """Choose what predictions need, such as a threshold, by validation's outputs."""

    @property
    def init(self) -> str:
        """The origin of the initial weights."""
        return "random" if self.weights is None else "given"

    def example(self, n: int) -> tuple[Any, ...]:
        """Return arguments to call the network with for n images, on torch's default device."""
        model: Any = self.cfg.model  # type: ignore[attr-defined]
        bands, size = self.preprocess.cfg.seen(model.in_channels, model.image_size)
        return (torch.zeros(n, bands, size, size),)

    def file_inputs(self, images: Tensor) -> dict[str, Tensor]:
        """Return the inputs of an exported file, by name, for images in the units on disk."""
        return {"image": images}

    def graph(self, model: nn.Module, image: Tensor) -> Tensor:
        """Compute the output of an exported file from its inputs (`file_inputs`)."""
        return model(self.preprocess(image))  # type: ignore[no-any-return]

    def file_facts(self) -> dict[str, Any]:
        """Return further facts that a user of the file needs."""
        return {}

    @classmethod
    def combine(cls, runs: Sequence[tuple[Path, Described]], how: str) -> Described:
        """Combine the networks of finished runs in one export.

        Raises:
            UserError: they cannot be combined, or the task does not support it.
        """
        raise UserError(
            f"{runs[0][0]} is of task {cls.name}; only runs of task common can be combined"
        )
