"""The one place that imports onnxruntime, which reports to its makers if it is let to."""

from __future__ import annotations

import importlib
import os
from types import ModuleType


def import_onnxruntime() -> ModuleType:
    """Import onnxruntime with its telemetry off.

    Since 1.24 or so the packages for Linux and macOS, too, open a database of events in the home
    folder when they are imported, and send it. Only this variable comes early enough; the call is
    for whoever imported it before.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    onnxruntime = importlib.import_module("onnxruntime")
    onnxruntime.disable_telemetry_events()
    return onnxruntime
