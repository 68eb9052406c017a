"""A compilation cache is used by processes on GPUs only where they share it."""

import pytest

from tests.harness import two_processes

PROGRAM = """
import sys

import jax
import jax.numpy as jnp
from mixtrain_jax.runtime import compilation_cache, processes

place, number, folder = sys.argv[1:]
processes.start(place, 2, int(number))
jax.config.update("jax_compilation_cache_dir", folder)
compilation_cache.compilation_cache.reset_cache()  # JAX's own: it looked into that of the start
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
with processes.abort_all_on_error():
    shared = compilation_cache.keep_if_shared(folder)
    jax.block_until_ready(jax.jit(lambda x: jnp.sin(x) + 3)(1.0))
    print(shared)
"""


@pytest.mark.multidevice
@pytest.mark.parametrize("shared", [True, False])
def test_two_processes_agree_whether_they_share_it(tmp_path, shared):
    folders = [tmp_path / "cache", tmp_path / ("cache" if shared else "another")]
    start = str(tmp_path / "of the start")
    ended = two_processes(
        PROGRAM, [[folder] for folder in folders], JAX_COMPILATION_CACHE_DIR=start
    )
    for number, (said, trouble) in enumerate(ended):
        assert said.endswith(f"{shared}\n")
        warned = "Host 1 does not see the first one's" in trouble
        assert warned == (not shared and number == 0)
    kept = [path.name for path in folders[0].iterdir()]
    assert bool(kept) == shared and not [name for name in kept if name.startswith("shared-")]
