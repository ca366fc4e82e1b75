"""Tasks: one module for each, with its settings, network, loss, scores, figures and exports.

`registry` finds a task by the name in a configuration. Nothing here imports torch until it is used.
"""

from lensdist.tasks.base import Task
from lensdist.tasks.settings import TaskSettings
from lensdist.tasks.types import Drawing, Split, Stage, Start

__all__ = ["Drawing", "Split", "Stage", "Start", "Task", "TaskSettings"]
