"""Tables of results: digits, alignment, and runs that lack half of their files."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lensdist.metrics import report
from lensdist.utils.files import to_json


@pytest.mark.parametrize(
    ("value", "interval", "text"),
    [
        (0.91324, [0.9075, 0.9189], "0.9132 [0.9075, 0.9189]"),
        (0.5, [0.4, 0.6], "0.50 [0.40, 0.60]"),
        (41.8123, [41.5, 42.1], "41.81 [41.50, 42.10]"),
        (1.0, [1.0, 1.0], "1.0000 [1.0000, 1.0000]"),
        (0.7, [None, None], "0.7000"),
        (0.7, [math.nan, math.nan], "0.7000"),
        (0.91324, None, "0.9132"),
        (0.999962, None, "0.999962"),
        (1.0, None, "1.000"),
        (0.0, None, "0.000"),
        (1e-4, None, "0.0001000"),
        (1.5e-7, None, "1.500e-07"),
        (12345.6, None, "12,346"),
        (123.0, None, "123.0"),
        (math.nan, None, "–"),
    ],
)
def test_digits(value: float, interval: Any, text: str) -> None:
    assert report.number(value, interval) == text


ROWS = [
    {
        "method": "MAE | all",
        "labels_per_class": 30,
        "accuracy": 0.8123,
        "accuracy_ci": [0.78, 0.84],
    },
    {
        "method": "scratch",
        "labels_per_class": 3000,
        "accuracy": None,
        "done": True,
        "confusion": [[1]],
    },
]


def test_table_is_aligned() -> None:
    assert report.table(ROWS) == (
        "| method     | labels per class |             accuracy | done |\n"
        "|------------|-----------------:|---------------------:|-----:|\n"
        "| MAE \\| all |               30 | 0.812 [0.780, 0.840] |    – |\n"
        "| scratch    |            3,000 |                    – |  yes |"
    )


def test_results_are_written_whole(tmp_path: Path) -> None:
    figure = tmp_path / "figures" / "few_label.png"
    path = report.write_results(
        tmp_path, [*ROWS, {"accuracy": math.nan}], "Few labels", ["Simulated."], [figure]
    )
    text = path.read_text()
    assert text.startswith("# Few labels\n\n| method")
    assert "\n\n- Simulated.\n\n![few label](figures/few_label.png)\n" in text
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["rows"][:2] == ROWS
    assert found["rows"][2] == {"accuracy": None}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["results.json", "results.md"]


def test_a_failed_write_leaves_the_old_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report.write_results(tmp_path, ROWS, "old")
    before = (tmp_path / "results.json").read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        report.write_results(tmp_path, ROWS, "new")
    assert (tmp_path / "results.json").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2


def test_nothing_to_report(tmp_path: Path) -> None:
    assert "No results." in report.write_results(tmp_path, [], "Empty").read_text()


def finished(run: Path, scores: dict[str, Any]) -> Path:
    (run / "eval").mkdir(parents=True)
    (run / "export").mkdir()
    (run / "config.yaml").write_text(
        "task: finetune\npreset: best\nseed: 3\ndata: {labels_per_class: 100}\n"
    )
    (run / "eval" / "test.json").write_text(json.dumps(scores))
    (run / "export" / "config.json").write_text('{"init": "mae", "images": {"choose": 30}}')
    (run / "COMPLETE.json").write_text('{"steps": 500, "seconds": 61.5, "files": {}}')
    (run / "metrics.jsonl").write_text(
        "".join(
            json.dumps({"step": i, "kind": "train", "images_per_s": v}) + "\n"
            for i, v in enumerate([None, 10.0, 30.0, 20.0])
        )
    )
    return run


@pytest.mark.parametrize("nested", [False, True])
def test_collect_a_finished_run(tmp_path: Path, nested: bool) -> None:
    scores = {
        "n": 30,
        "accuracy": 0.9,
        "accuracy_ci": [0.8, 1.0],
        "labels": ["a"],
        "auc_macro": None,
    }
    run = finished(tmp_path / "best-100", {"metrics": scores} if nested else scores)
    assert report.collect([run]) == [
        {
            "run": "best-100",
            "task": "finetune",
            "preset": "best",
            "init": "mae",
            "labels_per_class": 100,
            "chosen_on": 30,
            "seed": 3,
            "n": 30,
            "accuracy": 0.9,
            "accuracy_ci": [0.8, 1.0],
            "steps": 500,
            "images_per_s": 20.0,
            "seconds": 61.5,
            "complete": True,
        }
    ]


def test_collect_is_lenient(tmp_path: Path) -> None:
    broken = finished(tmp_path / "broken", {})
    (broken / "eval" / "test.json").write_text('{"accuracy": 0.')
    (broken / "config.yaml").write_text("- not\n- a mapping\n")
    empty, row = report.collect([tmp_path / "nowhere", broken])
    assert empty == {"run": "nowhere", "complete": False}
    assert "test.json" in row["problem"]
    assert "config.yaml:1: must be a mapping" in row["problem"]
    assert row["steps"] == 500


def test_yaml_tags_run_nothing(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("!!python/object/apply:os.system ['touch hacked']\n")
    assert "config.yaml" in report.collect([tmp_path])[0]["problem"]


def test_reports_need_no_torch() -> None:
    code = "import sys, lensdist.metrics.report; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], timeout=240).returncode == 0


SCORES: dict[str, Any] = {
    "n": 1500,
    "labels": ["no_sub", "cdm"],
    "accuracy": 0.91324,
    "accuracy_ci": [0.9075, 0.9189],
    "auc_macro": 0.98,
    "auc_macro_ci": [0.97, 0.99],
    "auc_per_class": [0.99, math.nan],
    "auc_per_class_ci": [[0.98, 1.0], [math.nan, math.nan]],
    "confusion": [[1, 2], [3, 4]],
}


def test_scores_read_as_lines() -> None:
    assert report.lines(SCORES) == [
        "         n  1,500",
        "  accuracy  0.9132 [0.9075, 0.9189]",
        " auc macro  0.980 [0.970, 0.990]",
        "auc no_sub  0.990 [0.980, 1.000]",
        "   auc cdm  –",
    ]
    gain = {"accuracy_gain": -0.002, "accuracy_gain_ci": [-0.01, 0.006]}
    tta = {"views": "rot180", "n_views": 2, "n": 3, "accuracy": 0.5, **gain}
    assert report.lines({"accuracy": 0.25, "tta": tta}) == [
        "         accuracy  0.2500",
        "        tta views  rot180",
        "      tta n views  2",
        "     tta accuracy  0.5000",
        "tta accuracy gain  -0.0020 [-0.0100, 0.0060]",
    ]
    assert report.lines({}) == []


def test_variants_of_one_run_are_a_table() -> None:
    change = {"accuracy_change": -0.1, "accuracy_change_ci": [-0.2, 0.0]}
    text = report.hard_table({"plain": SCORES, "mass_third": {**SCORES, **change}})
    heads, _, first, second = text.splitlines()
    assert [head.strip() for head in heads.strip("|").split("|")] == [
        "variant", "n", "accuracy", "accuracy change", "auc macro", "auc no sub", "auc cdm",
    ]  # fmt: skip
    assert "| plain      | 1,500 | 0.9132 [0.9075, 0.9189] |" in first
    assert "| -0.10 [-0.20, 0.00] |" in second


def test_harder_images_have_a_table_of_their_own(tmp_path: Path) -> None:
    easy, both, broken = (finished(tmp_path / n, {"accuracy": 0.9}) for n in ("a", "b", "c"))
    variants = {"plain": SCORES, "psf_wide": {"accuracy": 0.5, "accuracy_ci": [0.4, 0.6]}}
    (both / "eval" / "hard.json").write_text(to_json({"variants": variants}))
    (broken / "eval" / "hard.json").write_text("{")
    rows = report.hard_rows([easy, both, broken])
    assert report.table(rows[:2]) == (
        "| run | score     |                   plain |          psf wide |\n"
        "|-----|-----------|------------------------:|------------------:|\n"
        "| b   | accuracy  | 0.9132 [0.9075, 0.9189] | 0.50 [0.40, 0.60] |\n"
        "| b   | auc macro |    0.980 [0.970, 0.990] |                 – |"
    )
    assert rows[2]["run"] == "c"
    assert "hard.json" in rows[2]["problem"]
    text = report.write_results(tmp_path / "r", report.collect([both]), "T", hard=rows).read_text()
    assert text.index("| finetune") < text.index("## Harder images") < text.index("psf wide")
    assert json.loads((tmp_path / "r" / "results.json").read_text())["hard"][0]["psf_wide"] == 0.5
    without = report.write_results(tmp_path / "s", report.collect([easy]), "T").read_text()
    assert "Harder" not in without


def test_each_task_has_a_table_of_its_own(tmp_path: Path) -> None:
    rows = [
        {"run": "a", "task": "common", "accuracy": 0.9},
        {"run": "b", "task": "sr", "psnr": 40.0},
        {"run": "c", "task": "common", "accuracy": 0.8},
        {"run": "never begun", "complete": False},
    ]
    text = report.write_results(tmp_path, rows, "Two").read_text()
    first, second, third = text.strip().split("\n\n")[1:4]
    assert ["psnr" in one for one in (first, second, third)] == [False, True, False]
    assert ["accuracy" in one for one in (first, second, third)] == [True, False, False]
    assert (first.count("\n"), second.count("\n"), third.count("\n")) == (3, 2, 2)
    assert "never begun" in third
