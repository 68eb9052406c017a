import pytest

AHEAD = """
import jax, numpy as np
from mixtrain_jax.runtime import parallel

def step(state, batch):
    return state + parallel.total(batch.sum()), {}, batch

batches = [np.arange(24, dtype=np.float32).reshape(8, 3) + i for i in range(5)]
taken = []

def source():
    for batch in batches:
        taken.append(len(taken))
        yield batch

mapped = parallel.map_step(step)
ahead, plain = (parallel.place(np.zeros((), np.float32)) for _ in range(2))
for number, (batch, placed) in enumerate(parallel.prefetch(source())):
    assert batch is batches[number] and len(taken) == min(number + 2, 5)
    assert len(placed.sharding.device_set) == jax.local_device_count() == 4
    ahead, _, seen = mapped(ahead, placed)
    np.testing.assert_array_equal(parallel.gather(seen), batch)
    plain, _, _ = mapped(plain, parallel.spread(batch))
    assert float(ahead) == float(plain)
print(number + 1, "batches")
"""


@pytest.mark.multidevice
def test_prefetched_batches_give_the_same_steps(on_devices):
    assert on_devices(4, AHEAD).endswith("5 batches\n")
