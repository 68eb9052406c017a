"""What a run tells while it trains: a line on the terminal, metrics.jsonl, TensorBoard event files.

The monitor is handed numbers and finished pictures and knows nothing of models. A thread of its own
writes the files; a disk that is full costs log lines and one warning, never the run.
"""

import contextlib
import datetime
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from mixtrain_jax.runtime import events, files

BAR = 20  # characters
UPLOAD = 60.0  # seconds between writes where files cannot be appended to (gs://)


class Monitor:
    """Lines, numbers and pictures of one run, from `start_step` to `total_steps`.

    Lines of metrics.jsonl beyond `start_step`, which a killed run wrote after its last checkpoint,
    are dropped, so that a resumed run's file reads like that of one never stopped.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        total_steps: int,
        *,
        batch_size: int,
        start_step: int = 0,
        active: bool = True,
    ):
        """Opens the files.

        Args:
          workdir: gets metrics.jsonl and the event files.
          total_steps: the step after which training ends.
          batch_size: images a step, over all devices.
          start_step: steps taken before this run.
          active: False makes every method do nothing (all processes but the first).
        """
        self.total_steps = total_steps
        self._batch_size = batch_size
        self._active = active
        self._step = start_step
        self._rate = 0.0  # smoothed steps a second
        self._intervals = 0
        self._waited = self._paused = 0.0
        self._last = time.perf_counter()
        self._failed = False
        if active:
            workdir = self._workdir = epath.Path(workdir)
            stamp = f"{time.time():.0f}.{os.getpid()}"
            self._writer = ThreadPoolExecutor(1, "monitor")
            self._jsonl = _Appended(workdir / "metrics.jsonl")
            self._events = _Appended(workdir / f"events.out.tfevents.{stamp}")
            self._write(lambda: self._jsonl.start(lambda text: _until(text, start_step)))
            self._write(lambda: self._events.start(lambda _: events.header(start_step + 1)))

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Measures the wait for input: `with monitor.waiting(): batch = next(batches)`."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Keeps an evaluation or a save out of the images a second."""
        start = time.perf_counter()
        yield
        self._paused += time.perf_counter() - start

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Prints a line and writes all metrics, with the speed since the call before.

        The line shows the metrics whose names have no slash ("loss", "lr"), in the order given.

        Args:
          step: steps taken.
          metrics: numbers, or arrays of one number.
        """
        if not self._active:
            return
        now = time.perf_counter()
        seconds = max(now - self._last - self._paused, 1e-9)
        rate = (step - self._step) / seconds
        # The first interval holds the compilation, so the second one starts the mean anew.
        self._rate = rate if self._intervals < 2 else 0.7 * self._rate + 0.3 * rate
        self._intervals += 1
        speed = {"images_per_second": rate * self._batch_size, "input_wait": self._waited / seconds}
        self._step, self._last, self._waited, self._paused = step, now, 0.0, 0.0
        numbers = {name: float(value) for name, value in metrics.items()}
        self._print(self._line(step, numbers, speed))
        self.scalars(step, numbers | speed)

    def scalars(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Writes metrics ("val/AP") to metrics.jsonl and TensorBoard; prints nothing."""
        if not self._active:
            return
        numbers = {name: float(value) for name, value in metrics.items()}
        record = {"step": step, "time": round(time.time(), 3)} | {
            name: value if math.isfinite(value) else None for name, value in numbers.items()
        }
        self._write(lambda: self._jsonl.add(json.dumps(record).encode() + b"\n"))
        self._write(lambda: self._events.add(events.scalars(step, numbers)))

    def picture(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Writes a picture, [H, W, 3] uint8, to TensorBoard and as pictures/NAME_STEP.png."""
        if self._active:
            path = self._workdir / "pictures" / f"{name}_{step:07d}.png"
            self._write(lambda: self._events.add(events.picture(step, name, pixels)))
            self._write(lambda: files.write(path, events.png(pixels)))

    def close(self) -> None:
        """Returns when everything is written."""
        if self._active:
            self._write(self._jsonl.close)
            self._write(self._events.close)
            self._writer.shutdown()

    def _line(self, step: int, metrics: Mapping[str, float], speed: Mapping[str, float]) -> str:
        share = min(step / max(self.total_steps, 1), 1.0)
        bar = ("#" * int(share * BAR)).ljust(BAR, ".")
        width = len(str(self.total_steps))
        terms = " ".join(
            f"{name} {value:.4g}" for name, value in metrics.items() if "/" not in name
        )
        eta = "?"
        if self._rate:
            left = max(self.total_steps - step, 0) / self._rate
            eta = str(datetime.timedelta(seconds=round(left)))
        return (
            f"step {step:{width}}/{self.total_steps} [{bar}] {share:4.0%} | {terms} | "
            f"{speed['images_per_second']:.1f} images/s | input wait {speed['input_wait']:.0%} | "
            f"ETA {eta}"
        )

    def _print(self, line: str) -> None:
        try:
            print(line, flush=True)
        except OSError as error:  # standard output may be a file on a full disk
            self._warn(error)

    def _write(self, what: Callable[[], None]) -> None:
        def guarded() -> None:
            try:
                what()
            except Exception as error:
                self._warn(error)

        self._writer.submit(guarded)

    def _warn(self, error: Exception) -> None:
        if not self._failed:
            self._failed = True
            logging.warning("Logs are incomplete from here on; training continues: %s", error)


class _Appended:
    """A file that grows; on object stores it is kept in memory and uploaded now and then."""

    def __init__(self, path: epath.Path):
        self._path = path
        self._local = "://" not in os.fspath(path)
        self._content = b""
        self._uploaded = time.monotonic()

    def start(self, first: Callable[[bytes], bytes]) -> None:
        """Writes what `first` makes of the content there is."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        content = first(self._path.read_bytes() if self._path.exists() else b"")
        draft = self._path.with_name(self._path.name + ".tmp")
        draft.write_bytes(content)
        draft.replace(self._path)
        if not self._local:
            self._content = content

    def add(self, content: bytes) -> None:
        if self._local:
            with self._path.open("ab") as file:
                file.write(content)
            return
        self._content += content
        if time.monotonic() - self._uploaded > UPLOAD:
            self.close()

    def close(self) -> None:
        if not self._local:
            self._uploaded = time.monotonic()
            self._path.write_bytes(self._content)


def _until(text: bytes, step: int) -> bytes:
    """The whole lines of metrics.jsonl of steps up to `step`."""

    def wanted(line: bytes) -> bool:
        try:
            return json.loads(line)["step"] <= step
        except (ValueError, KeyError, TypeError):
            return False

    return b"".join(line + b"\n" for line in text.splitlines() if wanted(line))
