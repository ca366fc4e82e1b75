"""`lensdist train`: run `lensdist.train`."""

from lensdist.train import EXAMPLES, add_arguments
from lensdist.train import launch as run

__all__ = ["EXAMPLES", "add_arguments", "run"]
