"""What a run tells while it trains: a line on the terminal, metrics.jsonl, TensorBoard event files.

The monitor is handed numbers and finished pictures and knows nothing of models. A thread of its own
writes the files; a disk that is full costs log lines and one warning, never the run.
"""

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from absl import logging
from etils import epath
from tqdm import tqdm

from mixtrain_jax.runtime import storage
from mixtrain_jax.runtime.event_files import EventFiles

BAR = "[{bar:20}] {percentage:3.0f}%"  # as tqdm writes it
OFTEN = 20.0  # seconds the terminal is silent at most; a step that takes longer makes it longer
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
        page: Callable[[], None] | None = None,
    ):
        """Opens the files.

        Args:
          workdir: gets metrics.jsonl and the event files.
          total_steps: the step after which training ends.
          batch_size: images per step, over all devices.
          start_step: steps taken before this run.
          active: False makes every method do nothing (all processes but the first).
          page: writes the run's page; called after pictures and scores, and at the end.
        """
        self.total_steps = total_steps
        self._batch_size = batch_size
        self._active = active
        self._step = start_step
        self._rate: float | None = None  # smoothed steps per second
        self._waited = self._paused = 0.0
        self._last = time.perf_counter()
        self._told: float | None = None  # when the last line was printed
        self._failed = False
        self._page = page
        if active:
            workdir = self._workdir = epath.Path(workdir)
            self._writer = ThreadPoolExecutor(1, "monitor")
            self._jsonl = _Appended(workdir / "metrics.jsonl")
            self._events = EventFiles(workdir, start_step + 1)
            self._write(lambda: self._jsonl.start(lambda text: _until(text, start_step)))

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Measures the wait for input: `with monitor.waiting(): batch = next(batches)`."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Keeps a compilation, an evaluation or a save out of the images per second."""
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
        numbers = {name: float(value) for name, value in metrics.items()}
        rate, speed = self._speed(step)
        self._rate = rate if self._rate is None else 0.7 * self._rate + 0.3 * rate
        self._step, self._last, self._waited, self._paused = step, time.perf_counter(), 0.0, 0.0
        self._print(self._line(step, numbers, speed, self._rate))
        self.scalars(step, numbers | speed)

    def overdue(self) -> bool:
        """Whether the terminal has been silent for long: at the first step, and then by time."""
        return self._active and (self._told is None or time.perf_counter() - self._told >= OFTEN)

    def print_line(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Prints the line that `log` would print, and writes nothing."""
        if not self._active:
            return
        numbers = {name: float(value) for name, value in metrics.items()}
        rate, speed = self._speed(step)
        self._print(self._line(step, numbers, speed, self._rate or rate))

    def _speed(self, step: int) -> tuple[float, dict[str, float]]:
        """Steps a second since the last `log`, and what of it is told."""
        seconds = max(time.perf_counter() - self._last - self._paused, 1e-9)
        rate = (step - self._step) / seconds
        return rate, {
            "images_per_second": rate * self._batch_size,
            "input_wait": self._waited / seconds,
        }

    def scalars(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Writes metrics ("val/AP") to metrics.jsonl and TensorBoard; prints nothing."""
        if not self._active:
            return
        numbers = {name: float(value) for name, value in metrics.items()}
        record = {"step": step, "time": round(time.time(), 3)} | {
            name: value if math.isfinite(value) else None for name, value in numbers.items()
        }
        self._write(lambda: self._jsonl.add(json.dumps(record).encode() + b"\n"))
        self._write(lambda: self._events.scalars(step, numbers))

    def picture(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Writes a picture, [H, W, 3] uint8, to TensorBoard and as pictures/NAME_STEP.png."""
        if self._active:
            path = self._workdir / "pictures" / f"{name}_{step:07d}.png"
            self._write(lambda: self._events.picture(step, name, pixels))
            self._write(lambda: storage.write(path, storage.png(pixels)))
            self.page()

    def page(self) -> None:
        """Writes the run's page anew, once all that was told before is written."""
        if self._active and self._page is not None:
            self._write(self._page)

    def flush(self) -> None:
        """Returns when all lines so far are where a killed process leaves them.

        That takes an upload where files cannot be appended to; elsewhere nothing is waited for.
        """
        if self._active and not storage.is_local(self._workdir):
            self._write(self._jsonl.close).result()

    def close(self) -> None:
        """Returns when everything is written."""
        if self._active:
            self._write(self._jsonl.close)
            self.page()
            self._write(self._events.close)
            self._writer.shutdown()

    def _line(
        self, step: int, metrics: Mapping[str, float], speed: Mapping[str, float], rate: float
    ) -> str:
        width = len(str(self.total_steps))
        terms = " ".join(
            f"{name} {value:.4g}" for name, value in metrics.items() if "/" not in name
        )
        told = (
            f"{terms} | {speed['images_per_second']:.1f} images/s | "
            f"input wait {speed['input_wait']:.0%}"
        )
        return tqdm.format_meter(
            step,
            max(self.total_steps, 1),
            elapsed=1.0,  # of no matter where a rate is given
            rate=rate or None,
            ascii=".#",
            bar_format=f"step {step:{width}}/{self.total_steps} {BAR} | {told} | ETA {{remaining}}",
        )

    def _print(self, line: str) -> None:
        self._told = time.perf_counter()
        try:
            print(line, flush=True)
        except OSError as error:  # standard output may be a file on a full disk
            self._warn(error)

    def _write(self, what: Callable[[], None]) -> Future[None]:
        def guarded() -> None:
            try:
                what()
            except Exception as error:
                self._warn(error)

        return self._writer.submit(guarded)

    def _warn(self, error: Exception) -> None:
        if not self._failed:
            self._failed = True
            logging.warning("Logs are incomplete from here on; training continues: %s", error)


class _Appended:
    """A file that grows; on object stores it is kept in memory and uploaded now and then."""

    def __init__(self, path: epath.Path):
        self._path = path
        self._local = storage.is_local(path)
        self._first: Callable[[bytes], bytes] | None = None  # until the old content is read
        self._content = b""
        self._uploaded = time.monotonic()

    def start(self, first: Callable[[bytes], bytes]) -> None:
        """Writes what `first` makes of the content there is.

        Where that cannot be read, the next upload begins with it again: nothing is written over.
        """
        self._first = first
        self._put_first()

    def _put_first(self) -> None:
        if self._first is None:
            return
        try:
            content = self._first(storage.read(self._path))
        except FileNotFoundError:
            content = b""
        self._first = None
        if self._local:
            storage.write(self._path, content)
        else:
            self._content = content + self._content
            storage.write(self._path, self._content)

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
            self._put_first()
            storage.write(self._path, self._content)


def due(step: int, every: int, last: int) -> bool:
    """Whether something done every so many steps, and after the last one, is due after `step`."""
    return step == last or (every > 0 and step % every == 0)


def _until(text: bytes, step: int) -> bytes:
    """The whole lines of metrics.jsonl of steps up to `step`."""

    def wanted(line: bytes) -> bool:
        try:
            return json.loads(line)["step"] <= step
        except (ValueError, KeyError, TypeError):
            return False

    return b"".join(line + b"\n" for line in text.splitlines() if wanted(line))
