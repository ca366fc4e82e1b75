"""Look-up of tasks: those of this package by name, the user's own by import path.

`task: mae` is the task of that name in this package; `task: mylab.masses:MassTask` is the class
`MassTask` of the user's module `mylab.masses`, which lies in the current folder or on Python's
path.
"""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module
from typing import Any

from lensdist import tasks
from lensdist.tasks.base import Task
from lensdist.tasks.settings import TaskSettings
from lensdist.utils.errors import UserError
from lensdist.utils.plugins import load_object

AnyTask = Task[Any]


@cache
def built_in() -> dict[str, type[AnyTask]]:
    """Return the tasks of this package by name, in the order of their modules."""
    found = {}
    for module in pkgutil.iter_modules(tasks.__path__):
        for value in vars(import_module(f"{tasks.__name__}.{module.name}")).values():
            if isinstance(value, type) and issubclass(value, Task) and "name" in vars(value):
                found[value.name] = value
    return found


@cache
def task_class(name: str) -> type[AnyTask]:
    """Find the task with a name or import path.

    Raises:
        UserError: there is no such task, or its module is not trusted.
    """
    if name in built_in():
        return built_in()[name]
    if ":" not in name:
        known = ", ".join(built_in())
        raise UserError(
            f"task: {name!r} is not a task; use one of {known}, or the import path of your own, "
            "such as mylab.masses:MassTask"
        )
    found = load_object(name, "task")
    if not (isinstance(found, type) and issubclass(found, Task)):
        raise UserError(f"task: {name} is not a subclass of lensdist.tasks.Task")
    settings = getattr(found, "settings", None)
    if not (isinstance(settings, type) and issubclass(settings, TaskSettings)):
        raise UserError(f"task: {name} must have a class attribute `settings`: its TaskSettings")
    _check_complete(name, found)
    found.name = name
    return found


def _check_complete(name: str, found: type[AnyTask]) -> None:
    """Refuse a task that lacks something which would be missed only after training had begun."""
    lacking = sorted(found.__abstractmethods__) + ([] if hasattr(found, "answer") else ["answer"])
    if lacking:
        raise UserError(f"task: {name} lacks {', '.join(lacking)}; see docs/add-a-task.md")
    if found.settings.__abstractmethods__:
        raise UserError(f"task: the settings of {name} lack the property selects")
    model = found.settings.model_fields.get("model")
    fields = getattr(model.annotation, "model_fields", {}) if model else {}
    if not {"image_size", "in_channels"} <= fields.keys():
        raise UserError(
            f"task: the settings of {name} must have a field model, a pydantic model with "
            "image_size and in_channels"
        )
