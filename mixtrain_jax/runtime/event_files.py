"""TensorBoard's event files, by tensorboardX: short files, each finished and left alone.

`tensorboard --logdir=WORKDIR` reads all of them. A file is closed after five minutes or 10 MB and
the next one begun. In a local workdir they are written in place; for an object store, whose files
cannot be appended to, each is written locally and copied once when it is closed.
"""

import pathlib
import tempfile
import time
from collections.abc import Mapping

import numpy as np
from etils import epath

from mixtrain_jax.runtime import storage

SECONDS = 300.0
BYTES = 10e6


class EventFiles:
    """The event files of one start of a run. Errors of the file system are the caller's to handle.

    Attributes:
      directory: where they go.
    """

    def __init__(self, directory: epath.PathLike, first_step: int):
        """Opens nothing yet.

        Args:
          directory: the workdir.
          first_step: TensorBoard drops what files of earlier starts say of this step and later.
        """
        self.directory = storage.absolute(directory)
        self._first_step = first_step
        self._number = 0
        self._writer: _Writer | None = None

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Adds numbers by tag ("loss", "val/AP")."""
        writer = self._open()
        writer.scalars(values, step)
        self._close_if_old(writer)

    def picture(self, step: int, tag: str, pixels: np.ndarray) -> None:
        """Adds a picture, [H, W, 3] uint8."""
        writer = self._open()
        writer.picture(tag, pixels, step)
        self._close_if_old(writer)

    def close(self) -> None:
        """Finishes the file at hand."""
        if self._writer is not None:
            writer, self._writer = self._writer, None
            writer.close()

    def _open(self) -> "_Writer":
        if self._writer is None:
            start = self._first_step if self._number == 0 else None
            self._writer = _Writer(self.directory, self._number, start)
            self._number += 1
        return self._writer

    def _close_if_old(self, writer: "_Writer") -> None:
        if time.monotonic() - writer.opened > SECONDS or writer.size() > BYTES:
            self.close()


class _Writer:
    """One event file."""

    def __init__(self, directory: epath.Path, number: int, first_step: int | None):
        from tensorboardX import event_file_writer  # slow to import where PyTorch is installed
        from tensorboardX.proto import event_pb2

        self.opened = time.monotonic()
        self._event = event_pb2.Event
        self._directory = directory
        self._local = directory if storage.is_local(directory) else epath.Path(tempfile.mkdtemp())
        self._local.mkdir(parents=True, exist_ok=True)
        suffix = f".{time.time_ns() % 10**9:09d}.{number}"
        self._file = event_file_writer.EventsWriter(str(self._local / "events"), suffix)
        self._path = pathlib.Path(self._file._file_name)
        if first_step is not None:
            event = self._event(wall_time=time.time(), step=first_step)
            event.session_log.status = event.session_log.START
            self._file.write_event(event)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        event = self._event(wall_time=time.time(), step=step)
        for tag, value in values.items():
            event.summary.value.add(tag=tag, simple_value=value)
        self._file.write_event(event)

    def picture(self, tag: str, pixels: np.ndarray, step: int) -> None:
        event = self._event(wall_time=time.time(), step=step)
        height, width, channels = pixels.shape
        image = event.summary.value.add(tag=tag).image
        image.height, image.width, image.colorspace = height, width, channels
        image.encoded_image_string = storage.png(pixels)
        self._file.write_event(event)

    def size(self) -> int:
        """Flushes, and returns the size of the file in bytes."""
        self._file.flush()
        return self._path.stat().st_size

    def close(self) -> None:
        self._file.close()
        if self._local != self._directory:
            storage.write(self._directory / self._path.name, self._path.read_bytes())
            self._path.unlink()
            self._local.rmdir()
