"""Image classifiers of torchvision, timm and the user, cut into sections from the stem to the head.

Progressive unfreezing unfreezes one section at a time, and the outputs of a frozen section can be
cached. DenseNets and ResNets have six sections (stem, four blocks, head), other networks of
torchvision and timm have two (trunk, head), and a network of your own has one. `Backbone` renames
torchvision's weights by section.
"""

from __future__ import annotations

from difflib import get_close_matches
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

from lensdist.models.config import EnsembleConfig
from lensdist.models.lensnet import LENSNET, WIDTH, lensnet
from lensdist.utils.errors import UserError
from lensdist.utils.plugins import load_object
from lensdist.utils.text import some
from lensdist.utils.torchvision_compat import import_torchvision

TIMM = "timm/"

# SqueezeNets end in a convolution. MNASNets load weights only with a version number, which only
# pickles keep. GoogLeNet and Inception return more than logits, and scale their inputs when their
# weights are ImageNet's.
_UNFIT = ["squeezenet*", "mnasnet*", "googlenet", "inception*"]


class Backbone(nn.Module):
    """A classifier with its last layer replaced: (B, C, H, W) -> (B, classes).

    Args:
        architecture: torchvision's name; `lensnet`; timm's name after `timm/`; or the import path
            of a class or function of the user's, `mylab.nets:MyNet`, that is called with the number
            of bands and of classes and returns a module (B, C, H, W) -> (B, classes).
        cfg: the settings of the ensemble.
        classes: the number of classes.
        bands: the bands of the input, if not `cfg.in_channels`.

    Attributes:
        sections: the sections by name, in the order of the forward pass; the last is `head`.
        names: torchvision's name of every weight -> its name here.

    Raises:
        UserError: there is no such classifier, or it cannot be a member.
    """

    def __init__(
        self, architecture: str, cfg: EnsembleConfig, classes: int, bands: int | None = None
    ) -> None:
        super().__init__()
        bands = bands or cfg.in_channels
        self.architecture = architecture
        self._layout = torch.channels_last
        own = _own_sections(architecture, cfg, classes, bands)
        if own is not None:
            self._repeat = False
            self.sections = nn.ModuleDict(own)
            self.names = {name: name for name in self.state_dict()}
            _channels_last(self)
            return
        self._repeat = bands == 1 and cfg.grey == "repeat"
        # The head first replaces the classifier, to find torchvision's names, and is then cut off.
        net, place = whole(architecture, cfg, classes, bands)
        head = net.get_submodule(place)
        _channels_last(net)
        theirs = {id(t): name for name, t in net.state_dict(keep_vars=True).items()}
        _put(net, place, nn.Identity())
        self.sections = nn.ModuleDict({**_cut(net), "head": head})
        self.names = {theirs[id(t)]: name for name, t in self.state_dict(keep_vars=True).items()}

    def prepare(self, x: Tensor) -> Tensor:
        """Return images in the bands and memory format of the first section."""
        x = x.expand(-1, 3, -1, -1) if self._repeat else x
        return x.contiguous(memory_format=self._layout)

    def channels_first(self) -> None:
        """Switch weights and images from channels-last to torch's default memory format."""
        if self._layout == torch.contiguous_format:
            return  # the layout of sharded weights cannot be changed
        self._layout = torch.contiguous_format
        for p in self.parameters():
            # `to` would not change the strides of one band, which has both layouts.
            p.data = torch.empty_like(p, memory_format=torch.contiguous_format).copy_(p.detach())

    def forward(self, x: Tensor, first: int = 0) -> Tensor:
        """Compute the sections from number `first` on."""
        for section in list(self.sections.values())[first:]:
            x = section(x)
        return x

    def adopt(self, state: dict[str, Tensor], *, head: bool = True) -> dict[str, Tensor]:
        """Rename weights from torchvision's names to ours, and fold their kernels to our bands.

        Args:
            state: all weights of a network.
            head: whether to include the weights of the last layer.

        Raises:
            UserError: weights are missing, unknown or of another shape.
        """
        own = self.state_dict()
        wanted = {t: o for t, o in self.names.items() if head or not o.startswith("sections.head.")}
        given = state
        if not head:
            place = _last_linear(_on_meta(self.architecture))[0]
            given = {k: v for k, v in state.items() if not k.startswith(f"{place}.")}
        # Files from before torch 1.0 lack these counters.
        missing = [t for t in wanted if t not in given and not t.endswith("num_batches_tracked")]
        unknown = [t for t in given if t not in wanted]
        if missing or unknown:
            raise UserError(
                f"the weights are not those of {self.architecture}: "
                + "; ".join(
                    f"{what} {some(names)}"
                    for what, names in (("missing", missing), ("unknown", unknown))
                    if names
                )
            )
        adopted = {}
        for name, value in given.items():
            shape = own[wanted[name]].shape
            if value.shape != shape and value.dim() == 4 and value.shape[1] == 3:
                value = fold(value, shape[1])
            if value.shape != shape:
                raise UserError(
                    f"the weights are not those of {self.architecture}: {name} is "
                    f"{tuple(value.shape)}, not {tuple(shape)}"
                )
            adopted[wanted[name]] = value
        return adopted


def _own_sections(
    architecture: str, cfg: EnsembleConfig, classes: int, bands: int
) -> dict[str, nn.Module] | None:
    """Build the sections of a network that is not torchvision's; None for torchvision's."""
    if architecture == LENSNET:
        head = make_head(WIDTH, cfg, classes)  # its weights are drawn first, as they always were
        return {**lensnet(bands, cfg.head_dropout), "head": head}
    if architecture.startswith(TIMM):
        trunk = _timm(architecture.removeprefix(TIMM), bands)
        return {"trunk": trunk, "head": make_head(int(trunk.num_features), cfg, classes)}
    if ":" not in architecture:
        return None
    net = load_object(architecture, "model.members")(bands, classes)
    if not isinstance(net, nn.Module):
        raise UserError(f"model.members: {architecture} made a {type(net).__name__}, not a Module")
    return {"head": net}


def _timm(name: str, bands: int) -> Any:
    import_torchvision()  # before timm imports it without the work-around
    try:
        import timm
    except ImportError as e:
        raise UserError(f"model.members: {TIMM}{name} needs timm; pip install timm") from e
    if not timm.is_model(name):
        near = get_close_matches(name, timm.list_models(), n=3)
        more = f", such as {', '.join(near)}" if near else ""
        raise UserError(f"model.members: timm has no model {name!r}{more}")
    return timm.create_model(name, pretrained=False, num_classes=0, in_chans=bands)


def _channels_last(net: nn.Module) -> None:
    """Convert a network to channels-last, in which convolutions on a CPU are a tenth faster.

    Images of one band have both layouts, and then the layout of the weights decides.
    """
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def make_head(features: int, cfg: EnsembleConfig, classes: int) -> nn.Module:
    """Build the head (B, features) -> (B, classes): linear, ReLU, BatchNorm, dropout (recipe)."""
    if not cfg.head_dims:
        return nn.Linear(features, classes)  # the same layer and name as in torchvision
    layers: list[nn.Module] = []
    widths = [features, *cfg.head_dims]
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU(), nn.BatchNorm1d(after)]
        layers += [nn.Dropout(cfg.head_dropout)]
    return nn.Sequential(*layers, nn.Linear(widths[-1], classes))


def fold(kernels: Tensor, bands: int) -> Tensor:
    """Fold kernels for RGB (O, 3, h, w) to (O, bands, h, w).

    Their output equals that of the old kernels on the mean of the bands, repeated three times.
    """
    return (kernels.sum(1, keepdim=True) / bands).expand(-1, bands, -1, -1).contiguous()


def whole(
    architecture: str, cfg: EnsembleConfig, classes: int, bands: int
) -> tuple[nn.Module, str]:
    """Build torchvision's network with the first and last layers of `cfg`; return it and its head's
    name.

    Raises:
        UserError: torchvision has no such classifier, or it cannot be a member.
    """
    net = _build(architecture)
    place, last = _last_linear(net)
    head = make_head(last.in_features, cfg, classes)
    if bands != 1 or cfg.grey != "repeat":
        _fold_first(net, bands)
    _put(net, place, head)
    return net, place


def architectures() -> list[str]:
    """Return the names of torchvision's classifiers that can be members."""
    models = import_torchvision().models
    return cast(list[str], models.list_models(module=models, exclude=_UNFIT))


def _build(architecture: str) -> nn.Module:
    known = architectures()
    if architecture not in known:
        near = [name for name in known if name.startswith(architecture[:4])] or known[:5]
        raise UserError(
            f"model.members: {architecture!r} is neither {LENSNET} nor a classifier of torchvision "
            f"that can be a member, such as {', '.join(near)}; names of timm begin with {TIMM}, "
            "and your own are import paths such as mylab.nets:MyNet"
        )
    torchvision = import_torchvision()
    if not architecture.startswith("regnet"):
        return cast(nn.Module, torchvision.models.get_model(architecture, weights=None))
    device = torch.get_default_device()
    with torch.device("cpu"):  # a RegNet computes its own widths with tensors
        net = cast(nn.Module, torchvision.models.get_model(architecture, weights=None))
    return net.to(device)


def _on_meta(architecture: str) -> nn.Module:
    with torch.device("meta"):
        return _build(architecture)


def _last_linear(net: nn.Module) -> tuple[str, nn.Linear]:
    return [(name, m) for name, m in net.named_modules() if isinstance(m, nn.Linear)][-1]


def _put(net: nn.Module, place: str, module: nn.Module) -> None:
    parent, _, name = place.rpartition(".")
    setattr(net.get_submodule(parent), name, module)


def _fold_first(net: nn.Module, bands: int) -> None:
    """Replace the first convolution for RGB by one for `bands` bands."""
    place, old = next((n, m) for n, m in net.named_modules() if isinstance(m, nn.Conv2d))
    if bands == old.in_channels:
        return
    with torch.device(old.weight.device):  # may be meta, to take no memory
        new = nn.Conv2d(
            bands,
            old.out_channels,
            cast(tuple[int, int], old.kernel_size),
            cast(tuple[int, int], old.stride),
            cast(tuple[int, int], old.padding),
            bias=old.bias is not None,
        )
    new.weight = nn.Parameter(fold(old.weight.detach(), bands))
    new.bias = old.bias
    _put(net, place, new)


def _cut(net: nn.Module) -> dict[str, nn.Module]:
    """Cut a network without its head into sections, which together compute the same."""
    models = import_torchvision().models
    if isinstance(net, models.DenseNet):
        f = net.features
        # A transition joins the block before it, because its output is ten times smaller to cache.
        blocks = {
            f"block{i}": nn.Sequential(
                f.get_submodule(f"denseblock{i}"), f.get_submodule(f"transition{i}")
            )
            for i in (1, 2, 3)
        }
        # The last activation is only in torchvision's `forward`.
        last = nn.Sequential(f.denseblock4, f.norm5, nn.ReLU(), *_pool())
        stem = nn.Sequential(f.conv0, f.norm0, f.relu0, f.pool0)
        return {"stem": stem, **blocks, "block4": last}
    if isinstance(net, models.ResNet):
        return {
            "stem": nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool),
            "block1": net.layer1,
            "block2": net.layer2,
            "block3": net.layer3,
            "block4": nn.Sequential(net.layer4, *_pool()),
        }
    return {"trunk": net}


def _pool() -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
