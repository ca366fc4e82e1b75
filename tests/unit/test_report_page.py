"""`report.html`: one file with everything, seen by a browser, and the paired comparison in it."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lensdist.api import load
from lensdist.cli import main
from lensdist.data.dataset import PackedSet
from lensdist.evaluate.gallery import single_images
from lensdist.evaluate.side_by_side import compare, shown
from lensdist.export.model import LoadedModel
from lensdist.metrics import cards, drawing
from lensdist.metrics.cards import Card, Gallery, Singles
from lensdist.metrics.images import write_images
from lensdist.metrics.page import Run, charts, write_page
from lensdist.utils.errors import UserError
from lensdist.utils.files import sha256, to_json
from lensdist.utils.sealed import sealed
from tests.unit.exported import LABELS, write_model

pytestmark = pytest.mark.unit

_BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


def _run(folder: Path, right: list[int], seed: int = 0, lr: float = 1e-3, data: str = "f") -> Path:
    """A scored run of which `right` images of 40 are called right."""
    (folder / "eval").mkdir(parents=True)
    config = {"task": "finetune", "preset": "debug", "seed": seed, "optim": {"lr": lr}}
    (folder / "config.yaml").write_text(json.dumps(config | {"run": {"dir": str(folder)}}))
    lines = [{"step": s, "kind": "train", "loss": 1 / s, "lr": 0.1} for s in (1, 2, 3)]
    lines += [{"step": 3, "kind": "val", "accuracy": 0.5, "best": True, "seconds": 1.0}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    label = torch.zeros(40, dtype=torch.int64)
    logits = torch.zeros(40, 2)
    logits[:, 1] = 1
    logits[right, 0] = 2
    images = folder / "eval" / "test.safetensors"
    write_images(images, {"sample": torch.arange(40), "label": label, "logits": logits})
    facts = {
        "data": {"fingerprint": data}, "metrics": {"n": 40, "accuracy": len(right) / 40},
        "images": sha256(images),
    }  # fmt: skip
    (folder / "eval" / "test.json").write_text(to_json(sealed(facts)))
    return folder


def test_runs_are_compared_on_the_same_images(tmp_path: Path) -> None:
    a = _run(tmp_path / "a", list(range(30)))
    b = _run(tmp_path / "b", list(range(20)), lr=1e-2)
    row, nll = compare([a, b])
    assert (row["a"], row["b"], row["score"], row["n"]) == ("a", "b", "accuracy", 40)
    assert row["difference"] == pytest.approx(0.25)
    low, high = row["difference_ci"]
    assert 0 < low < 0.25 < high
    assert nll["score"] == "nll"
    assert nll["difference_ci"][1] < 0  # less is better


def test_seeds_of_one_setting_are_pooled_and_other_images_are_not_compared(tmp_path: Path) -> None:
    runs = [
        _run(tmp_path / "a", list(range(30))),
        _run(tmp_path / "a-seed1", list(range(28)), seed=1),
        _run(tmp_path / "b", list(range(20)), lr=1e-2),
        _run(tmp_path / "b-seed1", list(range(22)), seed=1, lr=1e-2),
        _run(tmp_path / "c", list(range(20)), lr=1e-1, data="other"),
    ]
    row, _ = compare(runs)
    assert (row["a"], row["b"], row["seeds"]) == ("a", "b", 2)
    assert row["difference"] == pytest.approx((10 + 6) / 80)


def test_outputs_that_were_changed_are_refused(tmp_path: Path) -> None:
    runs = [_run(tmp_path / "a", [1]), _run(tmp_path / "b", [2], lr=1e-2)]
    path = runs[0] / "eval" / "test.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    with pytest.raises(UserError, match="score again"):
        compare(runs)


def test_the_command_writes_the_page_and_names_what_differs_from_the_preset(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [_run(tmp_path / "a", list(range(30))), _run(tmp_path / "b", [3], lr=1e-2)]
    used = tmp_path / "used.json"
    used.write_text(json.dumps({str(runs[0]): {"nodes": 1.5, "gpus": 0}}))
    words = ["report", *map(str, runs), "--out", str(tmp_path / "out"), "--used", str(used)]
    assert main(words) == 0
    assert "Compared image by image" in capsys.readouterr().out
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert [row.get("node_hours") for row in rows] == [1.5, None]
    used.write_text("{}}")
    assert main(words) == 2
    assert "is not a file of hours" in capsys.readouterr().err
    text = (tmp_path / "out" / "report.html").read_text()
    assert re.search(r"<td>optim.lr</td><td>[\d.e-]+</td><td>0.01</td>", text)
    assert not re.search(r"(src|href)=\"https?:", text)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "report.html").write_text("my own")
    assert main(["report", str(runs[0]), "--out", str(mine)]) == 2
    assert (mine / "report.html").read_text() == "my own"


def test_a_curve_has_few_points_and_only_numbers() -> None:
    rows = [{"step": s, "kind": "train", "loss": float(s), "note": "x"} for s in range(5_000)]
    (chart,) = charts([Run("a", {}, rows)])
    points = chart["data"]["values"]
    assert 250 < len(points) <= 500
    assert all(point["value"] == point["step"] for point in points)


def test_single_images_are_those_answered_worst_with_where_the_network_looks(
    tmp_path: Path, tiny_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_model(tmp_path / "run")
    packed = PackedSet(tiny_set)
    rows = torch.from_numpy(packed.indices("test"))
    images = packed.gather(rows.numpy())["image"].numpy()
    stored = {"sample": rows, "label": torch.from_numpy(packed.labels[rows]).long()}
    stored["logits"] = torch.from_numpy(load(run).predict(images)["logits"])
    file = write_images(run / "eval" / "test.safetensors", stored)
    facts: dict[str, object] = {"metrics": {"n": len(rows)}, "images": sha256(file)}
    facts["data"] = {"path": str(tiny_set), "fingerprint": packed.manifest.fingerprint}
    (run / "eval" / "test.json").write_text(to_json(sealed(facts)))
    (run / "config.yaml").write_text(f"task: finetune\npreset: debug\nrun: {{dir: {run}}}\n")
    found = single_images(run)
    p, said = stored["logits"].softmax(1).max(1)
    wrong = (said != stored["label"]).nonzero()[:, 0]
    first = int(wrong[p[wrong].argmax()])
    (gallery,) = found.galleries  # the model cannot tell what is unlike the training images
    card = gallery.cards[0]
    assert card.name.startswith(f"sample {int(stored['sample'][first])} ")
    assert card.said["predicted"] == LABELS[int(said[first])] != card.said["true"]
    assert len(gallery.cards) == min(8, len(wrong))
    for url in (card.picture, card.looks):
        data = base64.b64decode(url.partition(",")[2])
        assert Image.open(io.BytesIO(data)).size == (64, 64)
    assert found.plot is not None
    points = found.plot["data"]["values"]
    assert len(points) == len(stored["sample"])
    assert {point["class"] for point in points} == set(LABELS)
    assert main(["report", str(run), "--out", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "report.html").read_text()
    assert html.escape(card.name) in text
    assert shown(run, {}, images=False).singles == Singles()
    predict = LoadedModel.predict

    def odd(self: LoadedModel, x: Any, **more: Any) -> dict[str, Any]:
        unlike = np.arange(len(x)) / 4
        return predict(self, x, **more) | {"unlike": unlike, "flag": unlike > 1}

    monkeypatch.setattr(LoadedModel, "predict", odd)
    flagged = single_images(run).galleries[1]
    assert flagged.text.startswith(f"{len(rows) - 5} of {len(rows)} test images")
    assert flagged.cards[0].name.startswith(f"sample {int(rows[-1])} ")  # the oddest first
    (run / "export" / "model.safetensors").write_bytes(b"damaged")
    assert "export" in single_images(run).missing


def test_the_first_row_of_a_picture_is_below() -> None:
    image = np.zeros((1, 32, 32))
    image[:, :8] = 1.0
    data = base64.b64decode(cards.picture(image).partition(",")[2])
    drawn = np.asarray(Image.open(io.BytesIO(data)).convert("L"))
    assert drawn[-4:].min() > 200 > 50 > drawn[:4].max()


def test_a_page_has_no_more_pictures_than_can_be_sent_by_mail(tmp_path: Path) -> None:
    two = [Card("one", {}, "data:image/jpeg;base64," + "A" * 1_500_000)] * 2
    runs = [Run(name, {}, [], singles=Singles([Gallery("Worst", "", two)])) for name in "ab"]
    text = write_page(tmp_path / "p.html", "x", runs).read_text()
    assert text.count('src="data:image/jpeg') == 2
    assert "would be too large" in text
    assert len(text) < 5_000_000


@pytest.mark.skipif(_BROWSER is None, reason="needs chromium")
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [500, 1300])  # chromium has no narrower windows
def test_a_browser_shows_the_page_without_an_error(tmp_path: Path, dark: bool, width: int) -> None:
    fig, axes = drawing.panels(1, 3, 2, "</script><b>")
    axes[0].plot([0, 1])
    picture = drawing.save(fig, tmp_path / "roc.png")
    rows = [{"step": s, "kind": "train", "loss": 1 / s} for s in range(1, 9)]
    hostile = "</script><script>document.title='hacked'</script>"
    row: Mapping[str, object] = {"task": "finetune", "run": hostile, "accuracy": 0.5}
    image = np.random.default_rng(0).random((1, 8, 8))
    card = Card(hostile, {"true": hostile}, cards.picture(image), cards.picture(image, image[0]))
    plot = cards.scatter(np.eye(4), ["a", "a", "b", hostile], [hostile] * 4)
    singles = Singles([Gallery(hostile, "worst first", [card])], plot)
    run = Run(hostile, row, rows, [picture], singles=singles)
    page = write_page(tmp_path / "p.html", hostile, [run])
    probe = (
        "<script>setInterval(() => { document.body.dataset.seen = "
        "[...document.images].filter(i => i.naturalWidth).length + ' ' + "
        "document.querySelectorAll('#charts svg').length + ' ' + "
        "document.querySelectorAll('#plot-1 svg .mark-symbol path').length + ' ' + "
        "(document.documentElement.scrollWidth <= innerWidth + 1) + ' ' + "
        "matchMedia('(prefers-color-scheme: dark)').matches + ' ' + "
        "(document.title !== 'hacked') }, 200)</script>"
    )
    text, end, rest = page.read_text().rpartition("</body>")
    page.write_text(text + probe + end + rest)
    assert _BROWSER is not None
    command = [
        _BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}", f"--window-size={width},900",
        f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=10000", "--dump-dom",
        page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    seen = re.search(r'data-seen="([^"]*)"', done.stdout)
    assert seen is not None, done.stderr
    assert seen[1] == f"3 1 7 true {str(dark).lower()} true"
    assert "CONSOLE" not in done.stderr
