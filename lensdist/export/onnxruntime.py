"""The one place that imports onnxruntime, which reports to its makers if it is let to."""

from __future__ import annotations

import importlib
import os
from types import ModuleType


def import_onnxruntime() -> ModuleType:
    """Import onnxruntime with its telemetry off.

    On Linux, too (seen with 1.32), it opens a database of events in the home folder as it is
    imported, to send them. Only the variable comes early enough; the call is for programs that
    imported it before.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    onnxruntime = importlib.import_module("onnxruntime")
    onnxruntime.disable_telemetry_events()
    return onnxruntime
