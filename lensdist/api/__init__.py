"""What a notebook or a script uses: `lensdist.load`, `lensdist.train`, `lensdist.read_runs`.

The package's own names are these; importing `lensdist` imports none of it.
"""

from lensdist.api.model import Model, load
from lensdist.api.run import Run, train
from lensdist.api.table import read_runs

__all__ = ["Model", "Run", "load", "read_runs", "train"]
