"""Send copies of the rows of metrics.jsonl to wandb and TensorBoard.

A tracker may be slow, hang, raise or be missing; training neither stops nor waits. Each tracker
runs in its own thread behind a bounded queue, and the training thread only appends to a deque. An
error is logged once, in one line, and ends only that tracker.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import netrc
import os
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

from lensdist.tracking.metrics_log import Row
from lensdist.utils.files import plain, to_json, write_atomic
from lensdist.utils.sealed import read_json

log = logging.getLogger(__name__)

_PATIENCE = 30  # s that wandb may take to start, and again to finish
_LOOK = 0.25  # s between checks of the queue
_HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")  # wandb's own, before and after its renaming

Mode = Literal["auto", "online", "offline", "off"]


class Trackers:
    """The trackers of a run, which only the main process creates.

    Everything is written inside the run's folder: `wandb/`, `tensorboard/`, and `track.json`, which
    holds wandb's run id so that a resumed run continues the same one.

    Args:
        run: the run's folder.
        wandb: auto: WANDB_MODE or, if unset, online if there is a key, else offline.
        project: wandb's project; None: WANDB_PROJECT or, if unset, `lensdist`.
        tensorboard: needs the extra `lensdist[tensorboard]`.
        config: the resolved configuration, shown with the curves.
        resumed_step: the step that the run resumes from; TensorBoard drops later rows.
        queue: rows that wait for a slow tracker before the oldest are dropped.
    """

    def __init__(
        self,
        run: Path,
        wandb: Mode = "off",
        project: str | None = None,
        tensorboard: bool = False,
        config: Mapping[str, Any] | None = None,
        *,
        resumed_step: int | None = None,
        queue: int = 4096,
    ) -> None:
        self._feeds: list[_Feed] = []
        mode = _resolve(wandb)
        if mode != "off":
            options = {
                "project": project or os.environ.get("WANDB_PROJECT") or "lensdist",
                "name": os.environ.get("WANDB_NAME") or run.name,
                "config": plain(config or {}),
            }
            why = f"wandb's files are in {run}, and a resumed run continues the same wandb run"
            for variable in {"WANDB_DIR", "WANDB_RESUME"} & os.environ.keys():
                log.warning("%s is not used: %s", variable, why)
            self._feeds.append(_Feed("wandb", lambda: _Wandb(run, mode, options), queue))
        if tensorboard:
            self._feeds.append(_Feed("tensorboard", lambda: _Board(run, resumed_step), queue))

    def log(self, row: Row) -> None:
        """Queue a row that `MetricsLog.append` returned; take microseconds and never raise."""
        for feed in self._feeds:
            feed.put(row)

    def close(self, timeout: float = _PATIENCE + 5) -> None:
        """Let the trackers finish, for at most `timeout` seconds in all; then abandon them."""
        end = time.monotonic() + timeout
        for feed in self._feeds:
            feed.finish()
        for feed in self._feeds:
            feed.join(max(0.0, end - time.monotonic()), timeout)
        self._feeds = []


class _Backend(Protocol):
    def log(self, step: int, values: dict[str, float]) -> None: ...

    def close(self) -> None: ...


class _Feed:
    """A thread that starts a tracker and passes it rows."""

    def __init__(self, name: str, start: Callable[[], _Backend], limit: int) -> None:
        self._name, self._start = name, start
        self._rows: deque[Row] = deque(maxlen=limit)  # when full, the oldest is dropped
        self._put = self._taken = 0  # each counted by one thread only, so no lock
        self._finishing = threading.Event()
        self._dead = False
        # A daemon: the interpreter does not wait for a tracker that hangs.
        self._thread = threading.Thread(target=self._work, name=f"track-{name}", daemon=True)
        self._thread.start()

    def put(self, row: Row) -> None:
        if not self._dead:
            self._rows.append(row)
            self._put += 1

    def finish(self) -> None:
        self._finishing.set()

    def join(self, seconds: float, timeout: float) -> None:
        self._thread.join(seconds)
        lost = self._put - self._taken - len(self._rows)
        if self._thread.is_alive():
            left = f" with {len(self._rows)} rows to go" if self._rows else ""
            log.warning(f"{self._name} has not finished in {timeout:.0f} s{left}; it is abandoned")
        elif lost and not self._dead:
            some = f"{lost} of {self._put} rows"
            log.warning(f"{self._name} was too slow for {some}; metrics.jsonl has them all")
        self._dead = True

    def _work(self) -> None:
        try:
            backend = self._start()
            finishing = False
            while not finishing:  # and so a last time after the last row
                # Polled, not notified: waking this thread at each row costs the training thread 30
                # us (measured), mostly for handing over the interpreter lock.
                finishing = self._finishing.wait(_LOOK)
                while self._rows:
                    row = self._rows.popleft()
                    backend.log(row["step"], _numbers(row))
                    self._taken += 1
            backend.close()
        except BaseException as error:  # wandb has been known to call sys.exit
            if not self._dead:
                log.warning("%s is off: %s", self._name, _one_line(error))
            self._dead = True
            self._rows.clear()


class _Wandb:
    """A wandb run inside RUN/wandb; wandb is imported here, in this tracker's thread."""

    def __init__(self, run: Path, mode: str, options: dict[str, Any]) -> None:
        folder = run / "wandb"
        folder.mkdir(parents=True, exist_ok=True)
        # wandb reads these when it starts its service; the user's own values are kept.
        os.environ.setdefault("WANDB_SILENT", "true")  # its banners would break the progress line
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # to wandb's makers, offline too
        for name in ("cache", "data"):
            os.environ.setdefault(f"WANDB_{name.upper()}_DIR", str(folder / name))
        wandb = importlib.import_module("wandb")

        def start(mode: str) -> Any:
            settings = wandb.Settings(
                console="off",  # it would replace stdout and stderr of the training process
                silent=True,
                save_code=False,
                init_timeout=_PATIENCE,
                finish_timeout=_PATIENCE,
            )
            return wandb.init(
                id=_wandb_id(run), resume="allow", mode=mode, dir=run, settings=settings, **options
            )

        try:
            self._run = start(mode)
        except Exception as error:
            if mode == "offline":
                raise
            # Compute nodes often have no network: keep the run, which `wandb sync` sends later.
            log.warning("wandb continues offline, in %s: %s", folder, _one_line(error))
            wandb.teardown()  # the service keeps the id of a run that failed to start
            self._run = start("offline")
        # Our own step and not wandb's, which refuses rows that go back, as a resumed run's do.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: dict[str, float]) -> None:
        self._run.log({"step": step, **values})

    def close(self) -> None:
        self._run.finish()


class _Board:
    """TensorBoard's event files in RUN/tensorboard."""

    def __init__(self, run: Path, resumed_step: int | None) -> None:
        try:
            writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter
        except ImportError as error:
            raise RuntimeError("not installed; pip install 'lensdist[tensorboard]'") from error
        purge = None if resumed_step is None else resumed_step + 1
        self._writer = writer(str(run / "tensorboard"), purge_step=purge)

    def log(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


def _numbers(row: Row) -> dict[str, float]:
    """Return the numbers of a row: `{"kind": "train", "loss": 1.0}` gives `{"train/loss": 1.0}`."""
    return {
        f"{row['kind']}/{name}": value
        for name, value in row.items()
        if name != "step" and isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def _resolve(mode: Mode) -> Mode:
    if mode == "auto" and os.environ.get("WANDB_MODE") == "disabled":
        return "off"
    if mode == "auto":
        mode = "offline" if os.environ.get("WANDB_MODE") == "offline" else "online"
        return mode if _has_key() else "offline"
    if mode == "online" and not _has_key():
        # wandb would ask for it on the terminal, and wait forever.
        log.warning("wandb has no key (WANDB_API_KEY or ~/.netrc), so it continues offline")
        return "offline"
    return mode


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    server = urlsplit(os.environ.get("WANDB_BASE_URL", "")).netloc
    with contextlib.suppress(OSError, netrc.NetrcParseError, RuntimeError):
        file = Path(os.environ.get("NETRC") or Path.home() / ".netrc").expanduser()
        hosts = netrc.netrc(file).hosts
        return any(host in hosts for host in ((server,) if server else _HOSTS))
    return False


def _wandb_id(run: Path) -> str:
    """Return the run's id from RUN/track.json; at first use, WANDB_RUN_ID or a new one."""
    path = run / "track.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        known = read_json(path)["wandb_id"]
        if isinstance(known, str) and known:
            return known
    made = os.environ.get("WANDB_RUN_ID") or uuid.uuid4().hex[:12]
    write_atomic(path, to_json({"wandb_id": made}) + "\n")
    return made


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
