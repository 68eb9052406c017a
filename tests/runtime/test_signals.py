"""Signals while something long cannot be interrupted."""

import os
import signal
import subprocess
import sys
import time

import pytest

from mixtrain_jax.config import load
from mixtrain_jax.errors import STOPPED
from mixtrain_jax.runtime import signals

# A call that does not return for long, like a compilation.
LONG = """
import hashlib
from mixtrain_jax.runtime import signals

with signals.catch() as stop:
    with stop.ends_at_once("ended while compiling"):
        print("begins", flush=True)
        hashlib.pbkdf2_hmac("sha256", b"", b"", 2_000_000_000)  # some twenty minutes
"""


def test_a_signal_during_a_compilation_ends_the_process_at_once():
    process = subprocess.Popen(
        [sys.executable, "-c", LONG],
        cwd=load.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "begins\n"
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=120)
    assert process.returncode == STOPPED
    assert error == "ended while compiling\n"


def test_in_a_program_of_somebody_else_no_signal_ends_the_process():
    with signals.catch(in_program=True) as stop:
        with stop.ends_at_once("never printed"):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
            assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_elsewhere_a_signal_only_asks():
    before = signal.getsignal(signal.SIGTERM)
    with signals.catch() as stop:
        with stop.ends_at_once("not now"):
            assert not stop.requested
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
    assert signal.getsignal(signal.SIGTERM) is before
