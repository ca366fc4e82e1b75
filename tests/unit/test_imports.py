"""What imports what: the contracts of `[tool.importlinter]`, and what no command waits for."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.unit

SETTINGS = "from lensdist.config.schema import *; list(map(run_schema, built_in()))"
PROGRESS = (
    "from lensdist.tracking.progress import Progress; import logging; logging.basicConfig(level=20)"
    "; p = Progress(2); p.mark(2, 2); p.show({}); p.close()"
)
HELP = "from lensdist import cli\ntry: cli.main(['--help'])\nexcept SystemExit: pass"
LAUNCHER = "from lensdist.runs.accelerate_launch import *; from pathlib import Path; "
LAUNCHER += "from_file(Path('accelerate_config.yaml')); import lensdist.utils.outcome"


def test_import_contracts_are_kept() -> None:
    code = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import lensdist, lensdist.config, lensdist.phases, lensdist.tracking", "torch numpy"),
        (SETTINGS, "torch numpy"),
        (HELP, "torch numpy"),
        (LAUNCHER, "torch accelerate deepspeed"),
        ("import lensdist.data.packing.pack, lensdist.data.epoch_size, lensdist.sim", "torch"),
        (PROGRESS, "rich"),
    ],
)
def test_what_takes_seconds_is_imported_where_it_is_needed(code: str, absent: str) -> None:
    code += f"\nimport sys; raise SystemExit(bool({set(absent.split())} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
