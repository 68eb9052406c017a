"""Swin Transformer (Liu et al., 2021) as a backbone: four feature maps at strides 4, 8, 16 and 32.

Equal to the released detector's backbone: feature maps are padded with zeros to whole windows after
the first norm of a block, these zeros are ordinary keys, and every second block shifts its windows
even when the map is no larger than a window. Whatever a batch adds beyond an image's padded size is
inert: tokens there are zeroed after that norm, and keys beyond the image's own whole windows are
masked.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mixtrain_jax.models.layers import Dense
from mixtrain_jax.ops import padding
from mixtrain_jax.ops.cpu import residual
from mixtrain_jax.types import Array

SHIFTED = -100.0  # added where query and key are neighbours only because the shift wraps around
BEYOND = -1e9  # added where the key lies beyond the image's own windows

weight_init = nn.initializers.truncated_normal(stddev=0.02)


class Swin(nn.Module):
    """Swin backbone.

    Attributes:
      embed_dim: channels of the first stage; each further stage doubles them.
      depths: blocks in each of the four stages.
      num_heads: attention heads in each stage.
      window_size: side of a window in tokens.
      mlp_ratio: hidden channels of the MLPs over channels.
      drop_path: stochastic depth of the last block; the rate grows linearly from 0.
      dtype: of matrix products and outputs; the residual stream, norms and softmax are float32.
      remat: recompute each block in the backward pass instead of storing its activations.
    """

    embed_dim: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    window_size: int = 7
    mlp_ratio: float = 4
    drop_path: float = 0.2
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, image: Array, size: Array, keys: Array | None = None) -> tuple[Array, ...]:
        """Computes features.

        Args:
          image: [B, H, W, 3] normalised pixels, zero beyond `size`.
          size: [B, 2] height and width of each image in pixels.
          keys: [B] PRNG keys, one per image, for stochastic depth; None for a deterministic pass.

        Returns:
          Features [B, ceil(H/s), ceil(W/s), embed_dim * s/4] for s = 4, 8, 16, 32.
        """
        x = PatchEmbed(self.embed_dim, self.dtype, name="patch_embed")(image)
        rates = np.linspace(0, self.drop_path, sum(self.depths))
        outputs = []
        for i, depth in enumerate(self.depths):
            first = sum(self.depths[:i])
            x = Stage(
                depth=depth,
                num_heads=self.num_heads[i],
                window_size=self.window_size,
                mlp_ratio=self.mlp_ratio,
                rates=tuple(rates[first : first + depth].tolist()),
                first_block=first,
                merge=i > 0,
                dtype=self.dtype,
                remat=self.remat,
                name=f"stage{i}",
            )(x, padding.extent(size, 4 * 2**i), keys)
            outputs.append(norm(self.dtype, f"norm{i}")(x))
        return tuple(outputs)


class PatchEmbed(nn.Module):
    """Makes each 4x4 patch of [B, H, W, 3] a token: [B, ceil(H/4), ceil(W/4), channels] float32."""

    channels: int
    dtype: Any

    @nn.compact
    def __call__(self, image: Array) -> Array:
        image = pad_to_multiple(image, 4)
        x = nn.Conv(
            self.channels,
            (4, 4),
            (4, 4),
            "VALID",
            dtype=self.dtype,
            kernel_init=weight_init,
            name="proj",
        )(image)
        return norm(jnp.float32, "norm")(x)


class Stage(nn.Module):
    """Blocks at one resolution; with `merge`, 2x2 tokens of the stage before are joined first."""

    depth: int
    num_heads: int
    window_size: int
    mlp_ratio: float
    rates: tuple[float, ...]
    first_block: int
    merge: bool
    dtype: Any
    remat: bool

    @nn.compact
    def __call__(self, x: Array, extent: Array, keys: Array | None) -> Array:
        if self.merge:
            x = PatchMerging(self.dtype, name="merge")(x)
        block = nn.remat(Block) if self.remat else Block
        for i in range(self.depth):
            x = block(
                num_heads=self.num_heads,
                window_size=self.window_size,
                shift=self.window_size // 2 if i % 2 else 0,
                mlp_ratio=self.mlp_ratio,
                drop_path=self.rates[i],
                number=self.first_block + i,
                dtype=self.dtype,
                name=f"block{i}",
            )(x, extent, keys)
        return x


class PatchMerging(nn.Module):
    """Joins 2x2 tokens in the order (0,0) (1,0) (0,1) (1,1) [row, column], and doubles channels."""

    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = pad_to_multiple(x, 2)
        b, h, w, c = x.shape
        x = x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 4, 2, 5)
        x = norm(self.dtype, "norm")(x.reshape(b, h // 2, w // 2, 4 * c))
        x = Dense(
            2 * c, use_bias=False, dtype=self.dtype, kernel_init=weight_init, name="reduction"
        )(x)
        return x.astype(jnp.float32)


class Block(nn.Module):
    """Window attention and an MLP, each behind a norm and with a residual, as in Swin, eq. 3."""

    num_heads: int
    window_size: int
    shift: int
    mlp_ratio: float
    drop_path: float
    number: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, extent: Array, keys: Array | None) -> Array:
        """x: [B, H, W, C] float32 tokens; extent: [B, 2] rows and columns in the padded size."""
        _, height, width, channels = x.shape
        window = self.window_size
        y = norm(self.dtype, "norm1")(x)
        y = jnp.where(padding.inside(height, width, extent)[..., None], y, 0)
        y = pad_to_multiple(y, window)
        padded = y.shape[1], y.shape[2]
        y = jnp.roll(y, (-self.shift, -self.shift), (1, 2))
        y = WindowAttention(self.num_heads, window, self.dtype, name="attention")(
            to_windows(y, window), attention_mask(padded, window, self.shift, extent)
        )
        y = jnp.roll(from_windows(y, padded), (self.shift, self.shift), (1, 2))
        x = residual.materialize(x + self._drop(y[:, :height, :width], keys, 0), extent)

        y = norm(self.dtype, "norm2")(x)
        y = Mlp(int(channels * self.mlp_ratio), self.dtype, name="mlp")(y)
        return residual.materialize(x + self._drop(y, keys, 1), extent)

    def _drop(self, y: Array, keys: Array | None, branch: int) -> Array:
        """Stochastic depth: drops a branch for whole images and scales up the survivors."""
        if keys is None or self.drop_path == 0:
            return y
        keep = 1 - self.drop_path
        draw = 2 * self.number + branch
        kept = jax.vmap(lambda key: jax.random.bernoulli(jax.random.fold_in(key, draw), keep))(keys)
        return jnp.where(kept[:, None, None, None], y / keep, 0)


class WindowAttention(nn.Module):
    """Multi-head attention within windows, with a learned bias for each relative position."""

    num_heads: int
    window_size: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, mask: Array) -> Array:
        """x: [B, N, T, C] tokens of N windows; mask: [B, N, T, T] added to logits (query, key)."""
        b, n, t, c = x.shape
        table = self.param(
            "relative_position_bias",
            weight_init,
            ((2 * self.window_size - 1) ** 2, self.num_heads),
            jnp.float32,
        )
        bias = table[relative_position_index(self.window_size)].transpose(2, 0, 1)

        qkv = Dense(3 * c, dtype=self.dtype, kernel_init=weight_init, name="qkv")(x)
        # Split along channels: the gradients are joined by one copy, not padded and added.
        q, k, v = (
            part.reshape(b, n, t, self.num_heads, c // self.num_heads).swapaxes(2, 3)
            for part in jnp.split(qkv, 3, axis=-1)
        )
        q = q * (c // self.num_heads) ** -0.5
        logits = jnp.einsum("bnhqd,bnhkd->bnhqk", q, k, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(logits + bias + mask[:, :, None], axis=-1).astype(self.dtype)
        y = jnp.einsum("bnhqk,bnhkd->bnqhd", weights, v).reshape(b, n, t, c)
        return Dense(c, dtype=self.dtype, kernel_init=weight_init, name="proj")(y)


class Mlp(nn.Module):
    """Two dense layers around an exact GELU."""

    hidden: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = Dense(self.hidden, dtype=self.dtype, kernel_init=weight_init, name="fc1")(x)
        y = gelu(y)
        return Dense(x.shape[-1], dtype=self.dtype, kernel_init=weight_init, name="fc2")(y)


def gelu(x: Array) -> Array:
    """The exact GELU, computed in float32.

    Flax's is written with erfc, which is slower on CPU, and which TPUs' compiler needs half a
    minute to join to a matrix product in the forward pass.
    """
    y = x.astype(jnp.float32)
    return (0.5 * y * (1 + jax.lax.erf(y * np.float32(0.5**0.5)))).astype(x.dtype)


def norm(dtype: Any, name: str) -> nn.LayerNorm:
    """LayerNorm over channels with float32 statistics and the given output type."""
    return nn.LayerNorm(epsilon=1e-5, dtype=dtype, use_fast_variance=False, name=name)


def pad_to_multiple(x: Array, multiple: int) -> Array:
    """Adds zeros to the right of and below x [B, H, W, C] until both sides are multiples."""
    down, right = (-side % multiple for side in x.shape[1:3])
    if not down and not right:
        return x
    return jnp.pad(x, ((0, 0), (0, down), (0, right), (0, 0)))


def to_windows(x: Any, window: int) -> Any:
    """[B, H, W, C] to [B, N, T, C], N windows of T = window**2 tokens, both in row-major order."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // window, window, w // window, window, c).swapaxes(2, 3)
    return x.reshape(b, -1, window * window, c)


def from_windows(x: Array, shape: tuple[int, int]) -> Array:
    """The way back from [B, N, T, C] to [B, H, W, C] for (H, W) = shape."""
    b, _, t, c = x.shape
    h, w = shape
    window = round(t**0.5)
    x = x.reshape(b, h // window, w // window, window, window, c).swapaxes(2, 3)
    return x.reshape(b, h, w, c)


def relative_position_index(window: int) -> np.ndarray:
    """[T, T] row of the bias table for each (query, key); rows apart count before columns apart."""
    rows, columns = np.divmod(np.arange(window * window), window)
    down = rows[:, None] - rows[None] + window - 1
    right = columns[:, None] - columns[None] + window - 1
    return down * (2 * window - 1) + right


def shift_regions(shape: tuple[int, int], window: int, shift: int) -> np.ndarray:
    """[N, T] number of the region that each token of a shifted map came from.

    Tokens of one window are neighbours in the image only where these numbers are equal.
    """
    ends = ([side - window, side - shift] if shift else [] for side in shape)
    rows, columns = (np.digitize(np.arange(side), end) for side, end in zip(shape, ends))
    regions = 3 * rows[:, None] + columns[None]
    return to_windows(regions[None, :, :, None], window)[0, :, :, 0]


def attention_mask(shape: tuple[int, int], window: int, shift: int, extent: Array) -> Array:
    """[B, N, T, T] float32 to add to the logits of (query, key) on a padded map of the given shape.

    An image's own windows cover its extent [B, 2]; the zeros they hold beyond it do count as keys.
    """
    limit = (extent + window - 1) // window * window
    own = jnp.roll(padding.inside(*shape, limit), (-shift, -shift), (1, 2))
    own = to_windows(own[..., None], window)[..., 0]
    query = shift_regions(shape, window, shift)
    key = jnp.where(own, query, -1)[:, :, None, :]
    return jnp.where(key < 0, BEYOND, jnp.where(key == query[:, :, None], 0.0, SHIFTED))
