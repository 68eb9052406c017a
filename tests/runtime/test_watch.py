"""How a process judges what the others say: who is gone, who is stuck, who has failed."""

import dataclasses
import threading

import pytest

from mixtrain_jax.errors import BAD_INPUT, LOST, RESTARTABLE, STALLED, LostPeer, UserError
from mixtrain_jax.runtime import processes, watch
from mixtrain_jax.runtime.watch import Heartbeat, StallDetector

MINUTE = int(60 / watch.BEAT)  # looks


class Run:
    """Three processes and the judge of the first, look after look."""

    def __init__(self, patience=0.0):
        self.stalls = StallDetector(0, patience)
        self.heartbeats = {number: Heartbeat(name=f"vm-{number}") for number in range(3)}
        self.ended = {}

    def go(self, looks, moving=(0, 1, 2), speaking=(0, 1, 2), step=None, **changes):
        """Lets some speak and move for so many looks; returns the first verdict."""
        for _ in range(looks):
            for number, last in self.heartbeats.items():
                new = {"beat": last.beat + 1} if number in speaking else {}
                if number in moving:
                    at = last.step + 1 if step is None else step
                    new |= {"moved": last.moved + 1, "step": at} | changes
                self.heartbeats[number] = dataclasses.replace(last, **new)
            verdict = self.stalls.judge(self.heartbeats, self.ended)
            if verdict is not None:
                return verdict
        return None


def test_a_process_that_says_nothing_is_gone_and_named_with_its_last_step():
    run = Run()
    assert run.go(7) is None
    silent = int(watch.SILENT / watch.BEAT)
    assert run.go(silent, speaking=(0, 1), moving=()) is None
    verdict = run.go(1, speaking=(0, 1), moving=())
    assert verdict.code == LOST
    assert str(verdict).startswith("host 2 (vm-2) has said nothing for 40 s, its last step is 7")


def test_one_that_has_finished_may_be_silent():
    run = Run()
    run.go(1, moving=(2,), doing=watch.FINISHED)
    assert run.go(MINUTE, speaking=(0, 1), moving=(0, 1)) is None


def test_one_that_waits_for_images_while_the_others_wait_for_it_is_stuck():
    run = Run(patience=60.0)
    run.go(5)
    run.go(1, moving=(1,), step=6, doing="waiting for images")
    run.go(2, moving=(0, 2), step=6, doing="computing")
    assert run.go(MINUTE, moving=()) is None
    verdict = run.go(2, moving=())
    assert verdict.code == STALLED
    told = str(verdict)
    assert told.startswith("host 1 (vm-1) is stuck, waiting for images at step 6, for 1 minutes")
    assert "config.stall_minutes" in told


def test_one_that_waits_for_the_images_of_others_is_not_the_one_that_is_stuck():
    run = Run(patience=60.0)
    run.go(5)
    run.go(1, step=6, doing="waiting for images")
    for number in (0, 2):
        run.heartbeats[number] = dataclasses.replace(run.heartbeats[number], doing=watch.FOR_OTHERS)
    verdict = run.go(MINUTE + 2, moving=())
    assert verdict.code == STALLED
    assert str(verdict).startswith("host 1 (vm-1) is stuck, waiting for images at step 6, for 1 ")


def test_what_a_process_waits_for_is_no_going_on():
    own = watch.Watch()
    own.report(7, "waiting for images")
    before = own._heartbeat
    assert before.moved == 1
    own.report_waiting(watch.FOR_OTHERS)
    assert own._heartbeat == dataclasses.replace(before, doing=watch.FOR_OTHERS)


def test_all_stuck_together_says_so():
    run = Run(patience=60.0)
    run.go(3, doing="computing")
    verdict = run.go(2 * MINUTE, moving=())
    assert verdict.code == STALLED and "all hosts are stuck, computing at step 3" in str(verdict)


def test_without_patience_nobody_is_stuck():
    run = Run()
    run.go(3)
    assert run.go(100 * MINUTE, moving=()) is None


def test_a_process_that_was_itself_suspended_blames_nobody(monkeypatch):
    """By any clock an hour has passed, in which nobody was heard."""
    run = Run(patience=60.0)
    run.go(3)
    for clock in ("time", "monotonic"):
        later = getattr(watch.time, clock)() + 3600
        monkeypatch.setattr(watch.time, clock, lambda later=later: later)
    assert run.go(1, moving=(), speaking=()) is None
    assert run.go(1) is None


def test_a_failure_is_passed_on_with_its_code():
    run = Run()
    run.go(3)
    run.ended[2] = (BAD_INPUT, "5 of 9 images could not be read")
    verdict = run.go(1)
    assert verdict.code == BAD_INPUT
    assert str(verdict) == "host 2 has ended: 5 of 9 images could not be read"


def test_its_own_failure_is_not_heard():
    run = Run()
    run.ended[0] = (1, "mine")
    assert run.go(3) is None


def test_only_lost_stuck_and_stopped_runs_are_started_again():
    assert RESTARTABLE == (70, 71, 75, 134)


def test_one_line_says_why_a_process_ends(monkeypatch, capsys):
    """Its own error and what the others told may come in the same moment, in two threads."""
    ended = []
    monkeypatch.setattr(watch.os, "_exit", ended.append)
    monkeypatch.setattr(watch, "_last_line", threading.RLock())
    verdict = LostPeer("host 1 has ended: no such file", BAD_INPUT)
    watch.silence()
    thread = threading.Thread(target=watch._end, args=(verdict,))
    thread.start()
    thread.join()
    assert ended == [] and capsys.readouterr().err == ""
    watch._end(verdict)  # in the thread that ends the process
    assert ended == [BAD_INPUT]
    assert capsys.readouterr().err == "error: host 1 has ended: no such file\n"


def test_the_watch_ends_when_the_run_does():
    own = watch.Watch()
    own.start()
    own.report(3)
    own.finish()
    assert not own._thread.is_alive() and own._heartbeat.doing == watch.FINISHED
    own.finish()


@pytest.mark.parametrize("error", [UserError("no"), KeyboardInterrupt()])
def test_no_watch_outlives_a_run_that_fails_alone(error):
    """A program that catches the error and goes on would be ended as stuck, minutes later."""
    watch.start()
    first = watch._own
    watch.start()  # of a second run: the first watch has nothing to say any more
    second = watch._own
    assert not first._thread.is_alive() and second._thread.is_alive()
    with pytest.raises(type(error)), processes.abort_all_on_error():
        raise error
    assert not second._thread.is_alive() and watch._own is None
