"""Exporting a model tells nobody: no library that it uses reaches the network or keeps a record."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.exported import write_model

pytestmark = pytest.mark.unit

WATCH = """
import os, socket
def watched(name, original):
    def call(*args, **kwargs):
        if getattr(args[0], "family", None) != socket.AF_UNIX:
            with open(os.environ["SEEN"], "a") as file:
                file.write(f"{name} {args[-1]!r}\\n")
            raise OSError("no network")
        return original(*args, **kwargs)
    return call
for owner, name in ((socket.socket, "connect"), (socket.socket, "connect_ex"),
                    (socket, "getaddrinfo")):
    setattr(owner, name, watched(name, getattr(owner, name)))
"""


def test_the_check_of_an_onnx_file_is_quiet(tmp_path: Path) -> None:
    """onnxruntime's telemetry is no Python: it shows by its database in the home folder."""
    model, home = write_model(tmp_path / "run", size=32), tmp_path / "home"
    (tmp_path / "site").mkdir()
    home.mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(WATCH)
    quiet = ("CI", "ORT_", "XDG_", "GITHUB_")  # where onnxruntime might be silent by itself
    env = {k: v for k, v in os.environ.items() if not k.startswith(quiet)}
    env |= {"HOME": str(home), "SEEN": str(tmp_path / "seen")}
    env["PYTHONPATH"] = os.pathsep.join([str(tmp_path / "site"), *sys.path])
    words = ["export", str(model / "export"), "--format", "onnx", "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-m", "lensdist.cli", *words],
        env=env, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "seen").exists(), (tmp_path / "seen").read_text()
    assert [p for p in home.rglob("*") if "onnxruntime" in p.name] == []


def test_the_watch_sees_what_it_should(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(WATCH)
    code = "import socket; socket.create_connection(('127.0.0.1', 9))"
    env = os.environ | {"PYTHONPATH": str(tmp_path), "SEEN": str(tmp_path / "seen")}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=False)
    assert done.returncode == 1
    assert "getaddrinfo" in (tmp_path / "seen").read_text()
