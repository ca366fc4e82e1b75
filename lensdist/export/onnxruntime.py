"""Import onnxruntime, in this one place, with its telemetry off."""

from __future__ import annotations

import importlib
import os
from types import ModuleType


def import_onnxruntime() -> ModuleType:
    """Import onnxruntime with its telemetry off.

    While it is imported, also on Linux (seen with 1.32), it opens a database of events to send in
    the home folder. Only the variable comes early enough; the call serves programs that imported it
    before.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    onnxruntime = importlib.import_module("onnxruntime")
    onnxruntime.disable_telemetry_events()
    return onnxruntime
