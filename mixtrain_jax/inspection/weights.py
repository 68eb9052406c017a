"""Which backbone a checkpoint of pretrained weights is for, told from its arrays."""

import dataclasses
from typing import Any

from mixtrain_jax.errors import UserError
from mixtrain_jax.models import resnet
from mixtrain_jax.runtime import checkpoint
from mixtrain_jax.types import Params


@dataclasses.dataclass(frozen=True)
class Weights:
    """Pretrained weights.

    Attributes:
      source: as `config.init_from` takes it.
      backbone: fields of `config.model.backbone` that they fit.
    """

    source: str
    backbone: dict[str, Any]


def read(source: str) -> Weights | None:
    """Reads which backbone weights are for; None where no source is given.

    Raises:
      UserError: there is no such checkpoint, or its backbone is none that is known.
    """
    if not source:
        return None
    return Weights(source, backbone_of(source, checkpoint.load_weights(source)[0]))


def backbone_of(source: str, params: Params) -> dict[str, Any]:
    """Fields of `config.model.backbone` for parameters; raises as `read` does."""
    backbone = params.get("backbone", {})
    blocks = tuple(
        sum(name.startswith("block") for name in backbone.get(f"stage{i}", ())) for i in range(4)
    )
    if "patch_embed" in backbone:
        channels = backbone["patch_embed"]["proj"]["kernel"].shape[-1]
        return {"name": "swin", "embed_dim": int(channels), "depths": blocks}
    if "stem" in backbone:
        bottlenecks = "conv3" in backbone["stage0"]["block0"]
        depths = [
            depth
            for depth, counts in resnet.DEPTHS.items()
            if counts == blocks and (depth >= 50) == bottlenecks
        ]
        if depths:
            frozen = "mean" in backbone["stem"]["norm"]
            return {
                "name": "resnet",
                "depth": depths[0],
                "base_channels": int(backbone["stem"]["conv"]["kernel"].shape[-1]),
                "norm": "frozen_batch" if frozen else "group",
            }
    raise UserError(
        f"--weights={source}: its arrays are those of no backbone that recipes know (swin, resnet)"
    )
