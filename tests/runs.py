"""The settings of a run of each task, as classes that tests make runs with."""

from lensdist.config.schema import run_schema
from lensdist.tasks.registry import built_in

MaeRun = run_schema("mae")
FinetuneRun = run_schema("finetune")
CommonRun = run_schema("common")
SuperResolutionRun = run_schema("sr")
TASKS = {task: run_schema(task) for task in built_in()}
