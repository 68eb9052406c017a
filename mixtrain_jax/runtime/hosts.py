"""What the processes of a run tell each other beside their computing, by JAX's key-value service.

Nothing here sums over devices, so nothing here can hang because a device waits. Values are agreed
on at the start (`from_first`, `from_all`); from then on a thread of each process says how far its
process is and listens to the others: one that is gone, stuck or has failed is named, and all end.
"""

import atexit
import contextlib
import dataclasses
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from mixtrain_jax.errors import STALLED, LostPeer, UserError

BEAT = 2.0  # seconds between two words of a process
SILENT = 40.0  # seconds without a word after which a process is taken for gone
_SHORT = 0.002  # seconds until the others are asked again
_ROOT = "mixtrain_jax"
# In errors of JAX and orbax, which have no class of their own.
_SIGNS_OF_LOSS = ("Gloo", "NCCL", "oordination service", "Barrier")
FINISHED = "finished"  # what a process does that is silent from now on
FOR_OTHERS = "waiting for the images of other hosts"
Item = TypeVar("Item")
_counts: dict[str, int] = {}
_last_line = threading.RLock()  # whoever ends this process holds it, so that one line says why


def _state() -> Any:
    from jax._src import distributed  # the service is not public

    return distributed.global_state


def index() -> int:
    """This process's number."""
    return int(_state().process_id) if _state().client is not None else 0


def count() -> int:
    """How many processes the run has."""
    return int(_state().num_processes) if _state().client is not None else 1


def tells_of_loss(error: BaseException) -> bool:
    """Whether an error says that another process of this run, not a server, does not answer."""
    return count() > 1 and any(sign in str(error) for sign in _SIGNS_OF_LOSS)


def from_first(name: str, value: Any) -> Any:
    """The first process's value, as JSON gives it back, on all processes; that of others is unread.

    All processes must call it in the same order. The first must not fail before; see `on_first`.
    """
    value = json.loads(json.dumps(value))
    if count() == 1:
        return value
    key = _key(name)
    if index() == 0:
        _state().client.key_value_set(key, json.dumps(value))
        return value
    return json.loads(_wait_for(key))


def from_all(name: str, value: Any) -> list[Any]:
    """The values of all processes in their order, as JSON gives them back, on each of them."""
    if count() == 1:
        return [json.loads(json.dumps(value))]
    key = _key(name)
    _state().client.key_value_set(f"{key}/{index()}", json.dumps(value))
    return [json.loads(_wait_for(f"{key}/{number}")) for number in range(count())]


def together(items: Iterator[Item]) -> Iterator[Item]:
    """Hands on each item once all processes have theirs.

    A host whose images come late is then waited for here, where its watch can say so, and not
    inside a sum over devices, which some devices give up after seconds.
    """
    if count() == 1:
        yield from items
        return
    key = _key("ready")
    least = 0  # items that all have, as far as is known
    for number, item in enumerate(items, 1):
        _state().client.key_value_set(f"{key}/{index()}", str(number), allow_overwrite=True)
        pause = _SHORT
        while least < number:
            ready = _directory(key)
            least = min(ready.get(process, 0) for process in range(count()))
            if least < number:
                if pause == _SHORT:
                    waits(FOR_OTHERS)
                time.sleep(pause)
                pause = min(2 * pause, BEAT / 8)
        yield item


@contextlib.contextmanager
def on_first(context: AbstractContextManager[Any]) -> Iterator[None]:
    """Enters a context on the first host only.

    Raises:
      UserError: entering it failed there; every host raises it.
    """
    with contextlib.ExitStack() as stack:
        trouble = None
        if index() == 0:
            try:
                stack.enter_context(context)
            except UserError as error:
                trouble = str(error)
        if found := from_first("on_first", trouble):
            raise UserError(found)
        yield


def same_everywhere(fields: dict[str, Any]) -> None:
    """Checks that fields are the same on all processes.

    Raises:
      UserError: they are not; the first process that differs and its first field are named.
    """
    told = from_all("same", fields)
    for number, theirs in enumerate(told):
        for name in told[0] | theirs:
            first, other = told[0].get(name), theirs.get(name)
            if first != other:
                raise UserError(
                    f"host {number} differs from host 0 in {name}: {other} there, {first} on "
                    "host 0; start all hosts with the same command, code and data"
                )


@dataclasses.dataclass(frozen=True)
class Word:
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
    """Decides from the words of all processes whether this one has to end.

    Attributes:
      patience: seconds in which a process must go on to something else; 0: for ever.
    """

    def __init__(self, me: int, patience: float = 0.0):
        self.patience = patience
        self._me = me
        self._looks = 0
        self._last: dict[int, tuple[Word, int, int]] = {}  # word, look of last beat, of last move

    def look(self, words: dict[int, Word], ended: dict[int, tuple[int, str]]) -> LostPeer | None:
        """Looks at what has been said, `BEAT` seconds after it did so before.

        Time is counted in looks, so that a process that was itself suspended blames nobody.

        Args:
          words: the last word of each process.
          ended: exit code and last line of each process that has failed.

        Returns:
          Why this process has to end, if so.
        """
        self._looks += 1
        for number, (code, line) in sorted(ended.items()):
            if number != self._me:
                return LostPeer(f"host {number} has ended: {line}", code)
        for number, word in words.items():
            before, beat, move = self._last.get(number, (Word(-1, -1), 0, 0))
            beat = self._looks if word.beat != before.beat else beat
            move = self._looks if word.moved != before.moved else move
            self._last[number] = word, beat, move
        for number, (word, beat, _) in sorted(self._last.items()):
            silent = (self._looks - beat) * BEAT > SILENT and word.doing != FINISHED
            if number != self._me and silent:
                return LostPeer(
                    f"{_named(number, word)} has said nothing for {SILENT:.0f} s, its last step is "
                    f"{word.step}; start all hosts again to resume after the last checkpoint"
                )
        stuck = [move for _, _, move in self._last.values()]
        if self.patience and stuck and (self._looks - max(stuck)) * BEAT > self.patience:
            return self._stalled()
        return None

    def _stalled(self) -> LostPeer:
        """All wait: those that have come least far are the ones that are waited for."""
        words = {n: word for n, (word, _, _) in self._last.items()}
        least = min(word.moved for word in words.values())
        late = {n: word for n, word in words.items() if word.moved == least}
        late = {n: word for n, word in late.items() if word.doing != FOR_OTHERS} or late
        if len(late) == len(self._last) > 1:
            word = late[min(late)]
            who = f"all hosts are stuck, {word.doing} at step {word.step},"
        else:
            told = [f"{_named(n, w)} is stuck, {w.doing} at step {w.step}" for n, w in late.items()]
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
        self._word = Word(name=socket.gethostname())
        self._stalls = StallDetector(index())
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
        self.at(doing=FINISHED)
        self._done.set()
        self._thread.join(SILENT)

    def at(self, step: int | None = None, doing: str = "training") -> None:
        """Says that this process goes on to a step, or to something else in the same step."""
        with self._lock:
            step = self._word.step if step is None else step
            self._word = dataclasses.replace(
                self._word, moved=self._word.moved + 1, step=step, doing=doing
            )

    def waits(self, doing: str) -> None:
        """Says what this process waits for where it is, which is no going on."""
        with self._lock:
            self._word = dataclasses.replace(self._word, doing=doing)

    def allow(self, minutes: float) -> None:
        """Sets how long a process may do the same thing; 0: for ever."""
        self._stalls.patience = 60 * minutes

    def _run(self) -> None:
        failed, last = 0, False
        while not last:
            last = self._done.is_set()
            try:
                verdict = self._stalls.look(*self._exchange())
                failed = 0
            except Exception:  # the service lives in the first process
                failed += 1
                verdict = _GONE if failed > 3 else None
            if verdict is not None and not self._done.is_set():
                _end(verdict)
            self._done.wait(BEAT)

    def _exchange(self) -> tuple[dict[int, Word], dict[int, tuple[int, str]]]:
        """Says how far this process is; returns what all have said."""
        with self._lock:
            self._word = word = dataclasses.replace(self._word, beat=self._word.beat + 1)
        if count() == 1:
            return {0: word}, {}
        client = _state().client
        told = json.dumps(dataclasses.asdict(word))
        client.key_value_set(f"{_ROOT}/word/{index()}", told, allow_overwrite=True)
        words = {number: Word(**value) for number, value in _directory(f"{_ROOT}/word").items()}
        return words, {n: (code, line) for n, (code, line) in _directory(f"{_ROOT}/ended").items()}


watch: Watch | None = None  # of this process; `start_watch` makes it


def start_watch() -> None:
    """Starts this process's watch; it ends before Python does, and one of an earlier run now."""
    global watch
    finish()
    watch = Watch()
    watch.start()
    atexit.register(watch.finish)


def at(step: int | None = None, doing: str = "training") -> None:
    """Says that this process goes on, where there is a watch; see `Watch.at`."""
    if watch is not None:
        watch.at(step, doing)


def waits(doing: str) -> None:
    """Says what this process waits for, where there is a watch; see `Watch.waits`."""
    if watch is not None:
        watch.waits(doing)


def allow(minutes: float) -> None:
    """Sets how long a process may do the same thing, where there is a watch."""
    if watch is not None:
        watch.allow(minutes)


def silence() -> None:
    """As `Watch.silence`; does not return where the watch is ending the process already."""
    _last_line.acquire()
    if watch is not None:
        watch.silence()


def finish() -> None:
    """The run is over: what others do, or no longer do, is no fault from now on."""
    global watch
    if watch is not None:
        watch.finish()
        watch = None


def tell_end(code: int, line: str) -> None:
    """Tells the others that this process has failed, with its last line; they end with its code."""
    if count() > 1:
        try:
            _state().client.key_value_set(f"{_ROOT}/ended/{index()}", json.dumps([code, line]))
        except Exception as error:  # the service is gone, and with it the others' hope
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
    if index() == 0 and count() > 1:
        time.sleep(2 * BEAT)  # the service ends with this process, and the others may need it yet
    os._exit(verdict.code)


def _directory(key: str) -> dict[int, Any]:
    """What the processes have set below a key, by their numbers."""
    found = _state().client.key_value_dir_get(f"{key}/")
    return {int(key.rpartition("/")[2]): json.loads(value) for key, value in found}


def _named(number: int, word: Word) -> str:
    return f"host {number} ({word.name})" if word.name else f"host {number}"


def _key(name: str) -> str:
    _counts[name] = _counts.get(name, 0) + 1
    return f"{_ROOT}/{name}/{_counts[name]}"


def _wait_for(key: str) -> str:
    """The value of a key; the watch ends this process if the one that should set it is gone."""
    while True:
        try:
            return _state().client.blocking_key_value_get(key, 10_000)
        except Exception as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
