"""Which finished phases run again, what is said of them, and that nothing of them is lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lensdist.data.manifest import Manifest
from lensdist.utils.errors import UserError
from lensdist.utils.files import sha256, to_json, write_atomic
from lensdist.utils.staging import set_aside
from slurm import ROOT
from slurm.plan.builder import make_plan
from slurm.plan.outdated import Existing
from slurm.plan.plan import Plan
from tests.chains import write_chain, write_cluster

pytestmark = pytest.mark.unit


Planned = Callable[..., Plan]


@pytest.fixture
def planned(tmp_path: Path, tiny_set: Path) -> Planned:
    """Return the plan of a tiny chain, with settings."""
    chain, cluster = write_chain(tmp_path, tiny_set), write_cluster(tmp_path)
    return lambda *words, **more: make_plan(chain, cluster, words, **more)


def _complete(plan: Plan, index: int, **changes: Any) -> Path:
    """Put there what a finished run of a step leaves, as far as anybody looks at it."""
    step = plan.steps[index]
    run, config = step.target.run, step.config
    assert config is not None
    write_atomic(run / "config.yaml", "task: mae\n")
    write_atomic(run / "export" / "model.safetensors", f"weights of {run.name}")
    digests = {n: sha256(run / n) for n in ("config.yaml", "export/model.safetensors")}
    assert config.data.path is not None
    encoder = getattr(config, "encoder", None)
    record = {
        "config": config.model_dump(mode="json"),
        "data": Manifest.load(config.data.path).fingerprint,
        "encoder": encoder and sha256(encoder / "export" / "model.safetensors"),
        "code": {"utils/rng.py": sha256(ROOT / "lensdist/utils/rng.py")},
        "files": digests,
    }
    write_atomic(run / "COMPLETE.json", to_json(record | changes))
    return run


def _finished(planned: Planned) -> Plan:
    plan = planned()
    _complete(plan, 0)
    run = _complete(plan, 1)
    digest = sha256(run / "export" / "model.safetensors")
    scores = {"weights": {"model.safetensors": digest}, "code": {}}
    write_atomic(run / "eval" / "test.json", to_json(scores))
    return plan


def _states(plan: Plan) -> list[str]:
    return [step.existing.state for step in plan.steps]


def test_what_is_finished_and_unchanged_is_skipped(planned: Planned) -> None:
    assert _states(planned()) == ["new"] * 3
    _finished(planned)
    plan = planned()
    assert _states(plan) == ["done"] * 3
    assert plan.steps[0].existing.text == "complete already, skipped"
    # What does not change what is computed changes nothing.
    assert _states(planned("train.log_every=7")) == ["done"] * 3


def test_another_setting_runs_a_phase_and_what_follows_again(planned: Planned) -> None:
    _finished(planned)
    plan = planned("pretrain.optim.lr=0.5")
    assert _states(plan) == ["again", "again", "new"]
    assert "optim.lr: 0.001 -> 0.5" in plan.steps[0].existing.text
    assert "kept under another name" in plan.steps[0].existing.text
    assert plan.steps[1].existing.reasons == ("pretrain runs again",)
    assert _states(planned("finetune.optim.lr=0.5")) == [
        "done",
        "again",
        "new",
    ]


def test_other_data_run_a_phase_again(planned: Planned, tiny_set: Path) -> None:
    plan = _finished(planned)
    _complete(plan, 0, data="older")
    found = planned().steps[0].existing
    assert found == Existing("again", (f"data.path: other images in {tiny_set}",))
    kept = planned(triggers=("config", "code")).steps[0].existing
    assert kept.state == "done"
    assert "though data.path: other images" in kept.text


def test_another_encoder_runs_the_fine_tuning_again(planned: Planned) -> None:
    plan = _finished(planned)
    _complete(plan, 1, encoder="older")
    assert "encoder: other weights in" in planned().steps[1].existing.text


def test_changed_code_is_named(planned: Planned) -> None:
    plan = _finished(planned)
    _complete(plan, 0, code={"utils/rng.py": "older", "gone.py": "x"})
    found = planned().steps[0].existing
    assert found.state == "again"
    assert "changed code (utils/rng.py, gone.py)" in found.text
    assert _states(planned(triggers=("config", "data")))[0] == "done"


def test_a_run_that_was_begun_otherwise_starts_anew(planned: Planned, tiny_set: Path) -> None:
    plan = planned()
    run, config = plan.steps[0].target.run, plan.steps[0].config
    assert config is not None
    write_atomic(run / "config.yaml", config.model_dump_json())
    fingerprint = Manifest.load(tiny_set).fingerprint
    meta = {"meta": {"data": fingerprint, "encoder": None}}
    write_atomic(run / "checkpoints" / "step-00000004" / "checkpoint.json", to_json(meta))
    assert _states(planned())[0] == "begun"
    other = planned("pretrain.seed=9").steps[0].existing
    assert other == Existing("again", ("seed: 0 -> 9",))
    past = planned("pretrain.train.max_steps=3").steps[0].existing
    assert past == Existing("again", ("train.max_steps: 4 steps are done already, not 3",))


@pytest.mark.parametrize("setting", ["train.max_steps=9", "train.epochs=9", "train.early_stop=1"])
def test_another_length_is_another_result(setting: str, planned: Planned) -> None:
    _finished(planned)
    plan = planned(f"pretrain.{setting}")
    assert _states(plan) == ["again", "again", "new"]
    assert setting.partition("=")[0] in plan.steps[0].existing.text
    assert _states(planned(f"pretrain.{setting}", triggers=()))[:2] == [
        "done",
        "done",
    ]


def test_what_was_made_from_a_run_that_is_gone_is_outdated(planned: Planned) -> None:
    plan = _finished(planned)
    set_aside(plan.steps[0].target.run)
    again = planned()
    assert _states(again) == ["new", "again", "new"]
    assert again.steps[1].existing.reasons == ("pretrain is not complete",)


def test_a_damaged_run_is_told_and_not_sent_over(planned: Planned) -> None:
    plan = _finished(planned)
    (plan.steps[0].target.run / "config.yaml").write_text("task: other\n")
    with pytest.raises(UserError, match="was altered since its run was completed"):
        planned()


@pytest.mark.parametrize(
    ("phase", "changes", "other"),
    [
        ({"simulate": {"family": "model_ii", "n_per_class": 40}}, ["seed=3"], ("source",)),
        ({"pack": {"src": "raw"}}, ["seed=3", "dtype=float16"], ("seed", "dtype")),
    ],
)
def test_another_set(
    tmp_path: Path, tiny_set: Path, phase: Any, changes: list[str], other: tuple[str, ...]
) -> None:
    chain = json.loads(write_chain(tmp_path, tiny_set).read_text())
    chain["phases"] = {"images": phase} | chain["phases"]
    file = tmp_path / "chain.yaml"
    file.write_text(json.dumps(chain))
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "images").symlink_to(tiny_set)
    cluster = write_cluster(tmp_path)
    assert make_plan(file, cluster, ()).steps[0].existing.state == "done"
    found = make_plan(file, cluster, [f"images.{one}" for one in changes]).steps[0].existing
    assert found == Existing("again", tuple(f"another {name}" for name in other))
