"""`lensdist train`: run `lensdist.train`."""

from lensdist.train import add_arguments
from lensdist.train import launch as run

__all__ = ["add_arguments", "run"]
