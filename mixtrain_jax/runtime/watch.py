"""A thread of each process that says how far its process is, and listens to the others.

A process that is gone, stuck or has failed is named, and all end: whoever waits for it, inside a
sum over devices perhaps, cannot end by itself. Where there are no others it only watches its own.
"""

import atexit
import dataclasses
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import TypeVar

from mixtrain_jax.errors import STALLED, LostPeer
from mixtrain_jax.runtime import hosts

BEAT = 2.0  # seconds between two heartbeats of a process
SILENT = 40.0  # seconds without a heartbeat after which a process is taken for gone
FINISHED = "finished"  # what a process does that is silent from now on
FOR_OTHERS = "waiting for the images of other hosts"
_SHORT = 0.002  # seconds until the others are asked again
Item = TypeVar("Item")
_last_line = threading.RLock()  # whoever ends this process holds it, so that one line says why


@dataclasses.dataclass(frozen=True)
class Heartbeat:
    """What a process says of itself.

    Attributes:
      beat: how often it has spoken.
      moved: how often it has gone on to something else.
      step: the step it is at.
      doing: what it does there, such as "waiting for images".
      name: of its machine.
    """

    beat: int = 0
    moved: int = 0
    step: int = 0
    doing: str = "starting"
    name: str = ""


class StallDetector:
    """Decides from the heartbeats of all processes whether this one has to end.

    Attributes:
      patience: seconds in which a process must go on to something else; 0: for ever.
    """

    def __init__(self, me: int, patience: float = 0.0):
        self.patience = patience
        self._me = me
        self._looks = 0
        # Last heartbeat of each process, and the looks when it last came and last moved.
        self._last: dict[int, tuple[Heartbeat, int, int]] = {}

    def judge(
        self, heartbeats: dict[int, Heartbeat], ended: dict[int, tuple[int, str]]
    ) -> LostPeer | None:
        """Looks at what has been said, `BEAT` seconds after it did so before.

        Time is counted in looks, so that a process that was itself suspended blames nobody.

        Args:
          heartbeats: the last one of each process.
          ended: exit code and last line of each process that has failed.

        Returns:
          Why this process has to end, if so.
        """
        self._looks += 1
        for number, (code, line) in sorted(ended.items()):
            if number != self._me:
                return LostPeer(f"host {number} has ended: {line}", code)
        for number, now in heartbeats.items():
            before, came, moved = self._last.get(number, (Heartbeat(-1, -1), 0, 0))
            came = self._looks if now.beat != before.beat else came
            moved = self._looks if now.moved != before.moved else moved
            self._last[number] = now, came, moved
        for number, (last, came, _) in sorted(self._last.items()):
            silent = (self._looks - came) * BEAT > SILENT and last.doing != FINISHED
            if number != self._me and silent:
                return LostPeer(
                    f"{_named(number, last)} has said nothing for {SILENT:.0f} s, its last step is "
                    f"{last.step}; start all hosts again to resume after the last checkpoint"
                )
        stuck = [moved for _, _, moved in self._last.values()]
        if self.patience and stuck and (self._looks - max(stuck)) * BEAT > self.patience:
            return self._stalled()
        return None

    def _stalled(self) -> LostPeer:
        """All wait: those that have come least far are the ones that are waited for."""
        all_last = {number: last for number, (last, _, _) in self._last.items()}
        least = min(last.moved for last in all_last.values())
        late = {number: last for number, last in all_last.items() if last.moved == least}
        late = {n: last for n, last in late.items() if last.doing != FOR_OTHERS} or late
        if len(late) == len(self._last) > 1:
            last = late[min(late)]
            who = f"all hosts are stuck, {last.doing} at step {last.step},"
        else:
            told = [f"{_named(n, h)} is stuck, {h.doing} at step {h.step}" for n, h in late.items()]
            who = ", ".join(told) + ","
        return LostPeer(
            f"{who} for {self.patience / 60:g} minutes (config.stall_minutes); start all hosts "
            "again to resume after the last checkpoint",
            STALLED,
        )


_GONE = LostPeer("the first host is gone; start all hosts again to resume after its checkpoint")


class Watch:
    """The thread that speaks for this process and listens to the others.

    Where there are no others it only watches this one.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._heartbeat = Heartbeat(name=socket.gethostname())
        self._stalls = StallDetector(hosts.index())
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        """Begins; the thread ends by `finish`, or with the process."""
        self._thread.start()

    def silence(self) -> None:
        """This process is about to end for a reason of its own; from now on it blames nobody."""
        self._done.set()

    def finish(self) -> None:
        """Says that this process has come to its end, and returns when the thread has ended.

        A thread that was inside JAX's client when Python ends would abort the process.
        """
        self.report(doing=FINISHED)
        self._done.set()
        self._thread.join(SILENT)

    def report(self, step: int | None = None, doing: str = "training") -> None:
        """Says that this process goes on to a step, or to something else in the same step."""
        with self._lock:
            step = self._heartbeat.step if step is None else step
            self._heartbeat = dataclasses.replace(
                self._heartbeat, moved=self._heartbeat.moved + 1, step=step, doing=doing
            )

    def report_waiting(self, doing: str) -> None:
        """Says what this process waits for where it is, which is no going on."""
        with self._lock:
            self._heartbeat = dataclasses.replace(self._heartbeat, doing=doing)

    def set_patience(self, minutes: float) -> None:
        """Sets how long a process may do the same thing; 0: for ever."""
        self._stalls.patience = 60 * minutes

    def _run(self) -> None:
        failed, last = 0, False
        while not last:
            last = self._done.is_set()
            try:
                verdict = self._stalls.judge(*self._exchange())
                failed = 0
            except Exception:  # the service lives in the first process
                failed += 1
                verdict = _GONE if failed > 3 else None
            if verdict is not None and not self._done.is_set():
                _end(verdict)
            self._done.wait(BEAT)

    def _exchange(self) -> tuple[dict[int, Heartbeat], dict[int, tuple[int, str]]]:
        """Says how far this process is; returns what all have said."""
        with self._lock:
            mine = dataclasses.replace(self._heartbeat, beat=self._heartbeat.beat + 1)
            self._heartbeat = mine
        if hosts.count() == 1:
            return {0: mine}, {}
        client = hosts.service().client
        told = json.dumps(dataclasses.asdict(mine))
        client.key_value_set(f"{hosts.ROOT}/heartbeat/{hosts.index()}", told, allow_overwrite=True)
        found, ended = (hosts.directory(f"{hosts.ROOT}/{key}") for key in ("heartbeat", "ended"))
        return (
            {number: Heartbeat(**fields) for number, fields in found.items()},
            {number: (code, line) for number, (code, line) in ended.items()},
        )


_own: Watch | None = None  # this process's; `start` makes it


def start() -> None:
    """Starts this process's watch; it ends before Python does, and one of an earlier run now."""
    global _own
    finish()
    _own = Watch()
    _own.start()
    atexit.register(_own.finish)


def report(step: int | None = None, doing: str = "training") -> None:
    """Says that this process goes on, where there is a watch; see `Watch.report`."""
    if _own is not None:
        _own.report(step, doing)


def report_waiting(doing: str) -> None:
    """Says what this process waits for, where there is a watch; see `Watch.report_waiting`."""
    if _own is not None:
        _own.report_waiting(doing)


def set_patience(minutes: float) -> None:
    """Sets how long a process may do the same thing, where there is a watch."""
    if _own is not None:
        _own.set_patience(minutes)


def silence() -> None:
    """As `Watch.silence`; does not return where the watch is ending the process already."""
    _last_line.acquire()
    if _own is not None:
        _own.silence()


def finish() -> None:
    """The run is over: from now on a process that is missing is no fault."""
    global _own
    if _own is not None:
        _own.finish()
        _own = None


def tell_end(code: int, line: str) -> None:
    """Tells the others that this process has failed, with its last line; they end with its code."""
    if hosts.count() > 1:
        try:
            key = f"{hosts.ROOT}/ended/{hosts.index()}"
            hosts.service().client.key_value_set(key, json.dumps([code, line]))
        except Exception as error:  # the service is gone
            print(f"error: the other hosts could not be told: {error}", file=sys.stderr)


def fail(code: int, line: str) -> None:
    """Ends this process from a thread that is not the main one, and by the watches all others."""
    tell_end(code, line)
    _end(LostPeer(line, code))


def _end(verdict: LostPeer) -> None:
    """Ends the process from the watch's thread, whatever its others wait for.

    Returns where another thread is ending it for a reason of its own.
    """
    if not _last_line.acquire(blocking=False):
        return
    print("error: " + " ".join(str(verdict).split()), file=sys.stderr, flush=True)
    sys.stdout.flush()
    if hosts.index() == 0 and hosts.count() > 1:
        time.sleep(2 * BEAT)  # the service ends with this process, and the others may need it yet
    os._exit(verdict.code)


def wait_for_all(items: Iterator[Item]) -> Iterator[Item]:
    """Hands on each item once all processes have theirs.

    A host whose images come late is then waited for here, where its watch can say so, and not
    inside a sum over devices, which some devices give up after seconds.
    """
    if hosts.count() == 1:
        yield from items
        return
    key, client = hosts.new_key("ready"), hosts.service().client
    least = 0  # items that all have, as far as is known
    for number, item in enumerate(items, 1):
        client.key_value_set(f"{key}/{hosts.index()}", str(number), allow_overwrite=True)
        pause = _SHORT
        while least < number:
            ready = hosts.directory(key)
            least = min(ready.get(process, 0) for process in range(hosts.count()))
            if least < number:
                if pause == _SHORT:
                    report_waiting(FOR_OTHERS)
                time.sleep(pause)
                pause = min(2 * pause, BEAT / 8)
        yield item


def _named(number: int, heartbeat: Heartbeat) -> str:
    return f"host {number} ({heartbeat.name})" if heartbeat.name else f"host {number}"
