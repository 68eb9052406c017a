"""Where compiled programs are kept, so that a second start compiles nothing.

JAX writes them on the first process alone. On GPUs XLA's compiler shares its trials of kernels out
among the processes of a run, and each waits for the results of all others: one that finds its
program in the cache has none to tell, and those that do not would wait for it without end. So
processes on GPUs that have no cache in common do without.
"""

import contextlib
import os
import time

import jax
from absl import logging
from jax.experimental.compilation_cache import compilation_cache

from mixtrain_jax.errors import UserError
from mixtrain_jax.runtime import hosts, storage

_left = False  # whether `keep_if_shared` has turned the cache off


def prepare() -> str:
    """Has JAX keep programs where JAX_COMPILATION_CACHE_DIR says, or in the user's cache directory.

    Returns:
      The directory.
    """
    global _left
    chosen = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    folder = chosen or os.path.expanduser("~/.cache/mixtrain_jax")
    if _left:  # by a run before this one in the same process
        jax.config.update("jax_enable_compilation_cache", True)
        _left = False
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    return folder


def keep_if_shared(folder: str) -> bool:
    """Leaves the cache unless every process of the run sees the first one's files there.

    All processes must call it.

    Args:
      folder: of the cache, as this process has it.

    Returns:
      Whether they do; the same on all processes.
    """
    global _left
    name = hosts.from_first("cache", f"shared-{time.time_ns()}")
    path = storage.absolute(folder) / name
    trouble = ""
    if hosts.index() == 0:
        try:
            storage.make_directory(storage.absolute(folder))
            storage.write(path, b"")
        except UserError as error:
            trouble = str(error)
    hosts.from_first("cache written", None)
    seen = hosts.from_all("cache seen", _exists(path))
    if hosts.index() == 0:
        with contextlib.suppress(UserError):
            storage.delete(path)
    if all(seen):
        return True
    if hosts.index() == 0:
        logging.warning(
            "%s: every start compiles anew; set JAX_COMPILATION_CACHE_DIR to a folder that all "
            "hosts share.",
            trouble or f"Host {seen.index(False)} does not see the first one's {folder}",
        )
    _left = bool(jax.config.values["jax_enable_compilation_cache"])
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # which was looked for when the processes met
    return False


def _exists(path: os.PathLike[str]) -> bool:
    try:
        return storage.exists(path)
    except UserError:
        return False
