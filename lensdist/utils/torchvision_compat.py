"""Import of torchvision where its compiled operators do not match torch.

A CPU build of torch beside PyPI's torchvision is common: `pip install torch` from the CPU index,
then anything that depends on torchvision. There torchvision's compiled operators do not load, and
`import torchvision` fails with `operator torchvision::nms does not exist`; so do torchmetrics and
lightning, which import it. Models, transforms and export need none of those operators.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

_lock = threading.Lock()  # two patching threads could each restore the other's patch


def import_torchvision() -> ModuleType:
    """Import torchvision, whether or not its compiled operators match this torch.

    During the import `torch.library.register_fake` skips the operators of torchvision that do not
    exist. If all of them exist, this is a plain import. If not, `nms`, `deform_conv2d` and
    `io.read_image` raise when called; models, transforms v2, `torch.compile` and export work.

    Returns:
        The torchvision module.

    Raises:
        ImportError: torchvision is not installed.
    """
    import torch

    with _lock:
        original = torch.library.register_fake

        def register_fake(op: Any, *args: Any, **kwargs: Any) -> Any:
            if isinstance(op, str) and op.startswith("torchvision::"):
                name = op.removeprefix("torchvision::").partition(".")[0]
                if not hasattr(torch.ops.torchvision, name):
                    return _unchanged
            return original(op, *args, **kwargs)

        torch.library.register_fake = register_fake
        try:
            return importlib.import_module("torchvision")
        finally:
            torch.library.register_fake = original


def _unchanged(function: Callable[..., Any]) -> Callable[..., Any]:
    return function
