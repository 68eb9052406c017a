"""How the processes of a run come together, and how one leaves when something is wrong.

A run of one process goes the same way. Leaving by an error does no sum and waits for nobody: the
others hear of it from their watches.
"""

import contextlib
import importlib.metadata
import importlib.util
import os
import sys
import time
import traceback
from collections.abc import Iterator
from typing import Any

import jax
from absl import logging

from mixtrain_jax.errors import BAD_INPUT, BUG, LOST, LostPeer, UserError
from mixtrain_jax.runtime import compilation_cache, hosts, launchers, parallel, watch

JOINING = 300  # seconds to wait for the other processes at the start
# Seconds after which JAX takes a silent process for dead; half of it can be enough. It has to be
# longer than `watch.SILENT`, so that the watches, which name the host, report first.
HEARTBEAT_TIMEOUT = 120
_SIGNS_OF_LOSS = ("UNAVAILABLE", "DEADLINE_EXCEEDED")  # besides those of `hosts.tells_of_loss`


def start(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    devices: bool = True,
) -> None:
    """Joins the other processes, starts the devices, and sets the compilation cache.

    Without arguments the other processes are those of the Slurm step, the Open MPI or Kubernetes
    job or the Cloud TPU slice that this one runs in, if there is such a thing.

    Args:
      coordinator: HOST:PORT where the first process can be reached by all.
      processes: how many there are.
      process: this one's number, from 0.
      devices: whether JAX's devices will be used; a program alone leaves them to others if not.

    Raises:
      UserError: some of the three are given and not all, they contradict each other, the other
        processes cannot be reached, or JAX's devices cannot be started.
    """
    cache = compilation_cache.prepare()
    given = coordinator, processes, process
    if jax.distributed.is_initialized():  # a further run of this program
        pass
    elif any(value is not None for value in given):
        _join(*given)
    elif (how := launchers.found(os.environ, launchers.gpus())) is not None:
        _initialize(**how)
    elif launchers.on_cloud_tpu(os.environ) and not _alone_already():
        with contextlib.suppress(ValueError):  # a machine with a TPU that is no Cloud TPU VM
            _initialize()
    if devices and hosts.count() == 1:
        _start_devices()
    watch.start()
    if hosts.count() > 1 and jax.default_backend() == "gpu":
        compilation_cache.keep_if_shared(cache)


def _join(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Joins the processes that the command line names."""
    if coordinator is None or processes is None or process is None:
        raise UserError("--coordinator, --processes and --process go together: give all or none")
    name, _, port = coordinator.rpartition(":")
    if not name or not port.isdecimal():
        raise UserError(f"--coordinator={coordinator}: write HOST:PORT of the first process")
    if not 0 <= process < processes:
        raise UserError(f"--process={process}: must be from 0 to {processes - 1}")
    _initialize(
        coordinator_address=coordinator,
        num_processes=processes,
        process_id=process,
        cluster_detection_method="deactivate",  # no launcher is asked, as the flags say it all
        local_device_ids=launchers.local_devices(os.environ, launchers.gpus()),
    )


def _initialize(**which: Any) -> None:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            **which, initialization_timeout=JOINING, heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT
        )
    except RuntimeError as error:
        raise UserError(
            f"the processes of this run did not find each other: {str(error).splitlines()[0]}"
        ) from error
    # The first sum connects the processes, and each waits only seconds for the others: now they
    # come together, later one may compile for minutes longer.
    try:
        _start_devices()
        parallel.connect()
    except Exception as error:
        line = " ".join(str(error).split())[:300]
        if not isinstance(error, UserError):
            line = f"the processes of this run cannot sum (NCCL_DEBUG=INFO tells more): {line}"
        print(f"error: {line}", file=sys.stderr, flush=True)
        # Any other way out waits for the other processes.
        os._exit(BAD_INPUT if isinstance(error, UserError) else LOST)


def _start_devices() -> None:
    """Starts JAX's devices; raises UserError if those that were asked for do not start here."""
    asked = os.environ.get("JAX_PLATFORMS")
    try:
        found = jax.default_backend()
    except (RuntimeError, AssertionError) as error:  # the latter of what is not installed
        if _tells_of_loss(error):
            raise
        where = f"JAX_PLATFORMS={asked}: " if asked else ""
        why = "".join(str(error).splitlines()[:1])
        raise UserError(f"{where}JAX's devices do not start here. {why}") from error
    if found == "cpu" and not cpu_only() and not asked:
        logging.warning(
            "JAX was installed for accelerators and finds none, so this runs on the CPU: "
            "JAX_PLATFORMS=cuda (or tpu) tells why, JAX_PLATFORMS=cpu that it is meant."
        )


def _alone_already() -> bool:
    """Whether JAX's devices have started, and this process has all there are.

    Raises:
      UserError: it has some of several hosts', which can no longer join.
    """
    from jax._src import xla_bridge

    if not xla_bridge.backends_are_initialized():
        return False
    if jax.process_count() > 1:
        raise UserError(
            "JAX was used before this run, and so the hosts cannot join; start a fresh process on "
            "each, and train first"
        )
    return True


def cpu_only() -> bool:
    """Whether JAX can only compute on the CPU; known without starting its devices."""
    if platforms := os.environ.get("JAX_PLATFORMS"):
        return platforms == "cpu"
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return not plugins and importlib.util.find_spec("libtpu") is None


@contextlib.contextmanager
def abort_all_on_error() -> Iterator[None]:
    """Ends this process when it, or one it computes with, has failed; none waits for the others.

    A process that left the others by the usual way out would wait for them there, and they for it
    in their next sum over devices. So it says why in one line, there and to the others, and ends at
    once; their watches end them with the same exit code. One that hangs, or whose machine
    is gone without a word, is found out by the watches, and after `HEARTBEAT_TIMEOUT` by JAX.
    """
    try:
        yield
    except BaseException as error:
        if jax.process_count() == 1:
            watch.finish()  # the caller may go on; no watch outlives the run
            raise
        if not isinstance(error, Exception):
            raise
        code, line = BUG, f"{type(error).__name__}: {error}"
        if isinstance(error, UserError):
            code, line = BAD_INPUT, str(error)
        elif isinstance(error, LostPeer):
            code, line = error.code, str(error)
        elif _tells_of_loss(error):
            code = LOST
            line = (
                "another process of this run is gone; start all of them again to resume after the "
                f"last checkpoint ({line[:150]})"
            )
            time.sleep(4 * watch.BEAT)  # in which the watch may hear which it was, and why
        else:
            traceback.print_exc()
        watch.silence()  # one line is enough
        line = " ".join(line.split())
        print(f"error: {line}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        if code != LOST:
            watch.tell_end(code, line)
        if jax.process_index() == 0:
            time.sleep(3 * watch.BEAT)  # the service ends with this process; let the others hear
        os._exit(code)
    watch.finish()


def _tells_of_loss(error: BaseException) -> bool:
    signs = any(sign in str(error) for sign in _SIGNS_OF_LOSS)
    return hosts.tells_of_loss(error) or (signs and hosts.count() > 1)
