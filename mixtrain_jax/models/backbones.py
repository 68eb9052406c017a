"""The backbones a config can name: a new one is one file and one line here.

A backbone is a Flax module called with images [B, H, W, 3], their sizes [B, 2] and keys [B] (or
None), which returns four feature maps at strides 4, 8, 16 and 32.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn

from mixtrain_jax.errors import UserError
from mixtrain_jax.models.resnet import ResNet
from mixtrain_jax.models.swin import Swin


def _swin(options: Any, dtype: Any, remat: bool) -> nn.Module:
    return Swin(
        embed_dim=options.embed_dim,
        depths=tuple(options.depths),
        num_heads=tuple(options.num_heads),
        window_size=options.window_size,
        drop_path=options.drop_path,
        dtype=dtype,
        remat=remat,
    )


def _resnet(options: Any, dtype: Any, remat: bool) -> nn.Module:
    return ResNet(
        depth=options.depth,
        base_channels=options.base_channels,
        style=options.style,
        norm=options.norm,
        frozen_stages=options.frozen_stages,
        dtype=dtype,
        remat=remat,
    )


# By `config.model.backbone.name`: functions of `config.model.backbone`, the dtype of arithmetic and
# whether blocks are computed again in the backward pass.
BACKBONES: dict[str, Callable[[Any, Any, bool], nn.Module]] = {"swin": _swin, "resnet": _resnet}


def build_backbone(options: Any, dtype: Any, remat: bool) -> nn.Module:
    """Returns the backbone that a config names.

    Args:
      options: `config.model.backbone`.
      dtype: of the network's arithmetic.
      remat: compute blocks again in the backward pass instead of storing their activations.

    Raises:
      UserError: there is no backbone of this name.
    """
    if options.name not in BACKBONES:
        raise UserError(
            f"config.model.backbone.name is {options.name!r}: choose "
            + " or ".join(map(repr, BACKBONES))
        )
    return BACKBONES[options.name](options, dtype, remat)
