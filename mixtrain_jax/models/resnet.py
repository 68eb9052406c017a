"""ResNet (He et al., 2016) as a backbone: four feature maps at strides 4, 8, 16 and 32.

Two kinds of norm: batch norm frozen at stored statistics, as detectors use it with ImageNet
weights, and group norm for training from random weights. Two styles of bottleneck: "caffe" strides
in the first 1x1 convolution, "pytorch" in the 3x3. Whatever a batch adds beyond an image's padded
size is inert: features there are zeroed before each 3x3 convolution and the pooling, and left out
of group norm's statistics.
"""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mixtrain_jax.models.layers import Conv
from mixtrain_jax.ops import padding
from mixtrain_jax.types import Array

DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}

weight_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class ResNet(nn.Module):
    """ResNet backbone.

    Attributes:
      depth: 18 or 34 (basic blocks), 50 or 101 (bottlenecks).
      base_channels: channels of the stem; 64 in the paper.
      style: "caffe" or "pytorch", which convolution of a bottleneck has the stride.
      norm: "frozen_batch" or "group".
      frozen_stages: with frozen batch norm, the stem and this many stages never train; -1 for none.
      dtype: of convolutions and outputs; group norm's statistics are float32.
      remat: recompute each block in the backward pass instead of storing its activations.
    """

    depth: int = 50
    base_channels: int = 64
    style: str = "caffe"
    norm: str = "frozen_batch"
    frozen_stages: int = 1
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, image: Array, size: Array, keys: Array | None = None) -> tuple[Array, ...]:
        """Computes features.

        Args:
          image: [B, H, W, 3] normalised pixels, zero beyond `size`.
          size: [B, 2] height and width of each image in pixels.
          keys: ignored; backbones share one signature.

        Returns:
          Features [B, ceil(H/s), ceil(W/s), C_s] for s = 4, 8, 16, 32.
        """
        del keys
        frozen_stages = self.frozen_stages if self.norm == "frozen_batch" else -1
        x = Stem(self.base_channels, self.norm, self.dtype, name="stem")(image, size)
        if frozen_stages == 0:
            x = jax.lax.stop_gradient(x)
        block = Bottleneck if self.depth >= 50 else BasicBlock
        if self.remat:
            block = nn.remat(block, static_argnums=(3,))
        outputs = []
        for i, depth in enumerate(DEPTHS[self.depth]):
            x = Stage(
                block=block,
                depth=depth,
                channels=self.base_channels * 2**i,
                first_stride=2 if i else 1,
                style=self.style,
                norm=self.norm,
                dtype=self.dtype,
                name=f"stage{i}",
            )(x, size, 4 * 2**i)
            if i + 1 == frozen_stages:
                x = jax.lax.stop_gradient(x)
            outputs.append(x)
        return tuple(outputs)


def frozen(path: Sequence[str], norm: str = "frozen_batch", frozen_stages: int = 1) -> bool:
    """Tells whether a backbone parameter never trains, by its path below the backbone.

    With frozen batch norm its own parameters are, and all of the stem and of the first stages.
    """
    if norm != "frozen_batch":
        return False
    stages = ["stem"] + [f"stage{i}" for i in range(frozen_stages)] if frozen_stages >= 0 else []
    return path[0] in stages or "norm" in path[-2]


class Stem(nn.Module):
    """7x7 convolution and 3x3 max pooling, each with stride 2."""

    channels: int
    norm: str
    dtype: Any

    @nn.compact
    def __call__(self, image: Array, size: Array) -> Array:
        x = StemConv(self.channels, self.dtype, name="conv")(image)
        x = nn.relu(norm(self.norm, self.dtype, "norm")(x, size, 2))
        # After the ReLU a zero never beats a pixel, so zeros act as no pixels at all.
        return max_pool(max_pool(padding.mask(x, size, 2), axis=1), axis=2)


class StemConv(nn.Module):
    """7x7 convolution with stride 2, computed on 2x2 blocks of pixels laid out as channels.

    A convolution of three channels leaves most of a processor idle; as a 4x4 convolution of twelve
    channels with stride 1 the same numbers take a third of the time.
    """

    channels: int
    dtype: Any

    @nn.compact
    def __call__(self, image: Array) -> Array:
        b, h, w, c = image.shape
        kernel = self.param("kernel", weight_init, (7, 7, c, self.channels), jnp.float32)
        image = jnp.pad(image, ((0, 0), (0, h % 2), (0, w % 2), (0, 0))).astype(self.dtype)
        h, w = (h + 1) // 2, (w + 1) // 2
        blocks = image.reshape(b, h, 2, w, 2, c).swapaxes(2, 3).reshape(b, h, w, 4 * c)
        kernel = jnp.pad(kernel.astype(self.dtype), ((1, 0), (1, 0), (0, 0), (0, 0)))
        kernel = kernel.reshape(4, 2, 4, 2, c, -1).swapaxes(1, 2).reshape(4, 4, 4 * c, -1)
        return jax.lax.conv_general_dilated(
            blocks, kernel, (1, 1), ((2, 1), (2, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )


def max_pool(x: Array, axis: int) -> Array:
    """Maximum of three neighbours with stride 2 along one axis; its gradient needs no scatter."""
    size = x.shape[axis]
    around = [(1, 1) if i == axis else (0, 0) for i in range(x.ndim)]
    x = jnp.pad(x, around, constant_values=-jnp.inf)
    first, second, third = (
        jax.lax.slice_in_dim(x, start, start + size - 1 + size % 2, 2, axis) for start in range(3)
    )
    return jnp.maximum(jnp.maximum(first, second), third)


class Stage(nn.Module):
    """Residual blocks; the first one may have a stride and changes the number of channels."""

    block: Any
    depth: int
    channels: int
    first_stride: int
    style: str
    norm: str
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, size: Array, output_stride: int) -> Array:
        """x: [B, H, W, C]; output_stride: of the stage's output, in pixels of the image."""
        for i in range(self.depth):
            x = self.block(
                channels=self.channels,
                stride=self.first_stride if i == 0 else 1,
                style=self.style,
                norm=self.norm,
                dtype=self.dtype,
                name=f"block{i}",
            )(x, size, output_stride)
        return x


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut; `stride` is the block's."""

    channels: int
    stride: int
    style: str
    norm: str
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, size: Array, output_stride: int) -> Array:
        before = output_stride // self.stride
        y = conv(self.channels, 3, self.stride, self.dtype, "conv1")(padding.mask(x, size, before))
        y = nn.relu(norm(self.norm, self.dtype, "norm1")(y, size, output_stride))
        y = conv(self.channels, 3, 1, self.dtype, "conv2")(padding.mask(y, size, output_stride))
        y = norm(self.norm, self.dtype, "norm2", last=True)(y, size, output_stride)
        return nn.relu(y + shortcut(self, x, self.channels, size, output_stride))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with a shortcut; the output has four times `channels`."""

    channels: int
    stride: int
    style: str
    norm: str
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, size: Array, output_stride: int) -> Array:
        first, second = (self.stride, 1) if self.style == "caffe" else (1, self.stride)
        middle = output_stride // second
        y = conv(self.channels, 1, first, self.dtype, "conv1")(x)
        y = nn.relu(norm(self.norm, self.dtype, "norm1")(y, size, middle))
        y = conv(self.channels, 3, second, self.dtype, "conv2")(padding.mask(y, size, middle))
        y = nn.relu(norm(self.norm, self.dtype, "norm2")(y, size, output_stride))
        y = conv(4 * self.channels, 1, 1, self.dtype, "conv3")(y)
        y = norm(self.norm, self.dtype, "norm3", last=True)(y, size, output_stride)
        return nn.relu(y + shortcut(self, x, 4 * self.channels, size, output_stride))


def shortcut(block: Any, x: Array, channels: int, size: Array, output_stride: int) -> Array:
    """The input of a block, in the shape of its output: by a 1x1 convolution where needed."""
    if block.stride == 1 and x.shape[-1] == channels:
        return x
    x = conv(channels, 1, block.stride, block.dtype, "shortcut_conv")(x)
    return norm(block.norm, block.dtype, "shortcut_norm")(x, size, output_stride)


def conv(channels: int, kernel_size: int, stride: int, dtype: Any, name: str) -> Conv:
    """A convolution without bias."""
    return Conv(channels, kernel_size, stride, False, dtype, weight_init, name=name)


def norm(kind: str, dtype: Any, name: str, last: bool = False) -> nn.Module:
    """The norm of the given kind; a block's last group norm starts at zero: an identity block."""
    if kind == "frozen_batch":
        return FrozenBatchNorm(dtype, name=name)
    return GroupNorm(dtype, nn.initializers.zeros if last else nn.initializers.ones, name=name)


class FrozenBatchNorm(nn.Module):
    """Batch norm with stored statistics; none of its four parameters receives a gradient."""

    dtype: Any

    @nn.compact
    def __call__(self, x: Array, size: Array, output_stride: int) -> Array:
        del size, output_stride
        ones, zeros = nn.initializers.ones, nn.initializers.zeros
        scale, bias, mean, var = (
            jax.lax.stop_gradient(self.param(name, init, (x.shape[-1],), jnp.float32))
            for name, init in [("scale", ones), ("bias", zeros), ("mean", zeros), ("var", ones)]
        )
        factor = scale * jax.lax.rsqrt(var + 1e-5)
        return x * factor.astype(self.dtype) + (bias - mean * factor).astype(self.dtype)


class GroupNorm(nn.Module):
    """Group norm (Wu and He, 2018) over the padded size of each image.

    Groups have 16 channels, or more where that would make over 32 groups.
    """

    dtype: Any
    scale_init: Any

    @nn.compact
    def __call__(self, x: Array, size: Array, output_stride: int) -> Array:
        b, h, w, c = x.shape
        groups = math.gcd(c, min(32, max(1, c // 16)))
        scale = self.param("scale", self.scale_init, (c,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (c,), jnp.float32)
        inside = padding.inside(h, w, padding.extent(size, output_stride))[..., None]
        cells = jnp.maximum(inside.sum((1, 2, 3)), 1)  # nothing is divided by 0

        def mean_of_group(y: Array) -> Array:
            """[B, H, W, C] to [B, 1, 1, C]; sums each channel first, which vectorises."""
            sums = jnp.where(inside, y, 0).sum((1, 2)).reshape(b, groups, -1).sum(-1)
            return (sums / (cells * (c // groups))[:, None]).repeat(c // groups, -1)[:, None, None]

        y = x.astype(jnp.float32)
        y = y - mean_of_group(y)
        factor = jax.lax.rsqrt(mean_of_group(y**2) + 1e-5) * scale
        return (y * factor + bias).astype(self.dtype)
