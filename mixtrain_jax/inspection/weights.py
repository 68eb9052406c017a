"""Which backbone a checkpoint of pretrained weights is for: as it says, or told from its arrays."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from mixtrain_jax.config import load
from mixtrain_jax.errors import UserError
from mixtrain_jax.models import resnet
from mixtrain_jax.runtime import checkpoint
from mixtrain_jax.types import Params

# What the recipe of a new training decides, not the weights.
OF_TRAINING = ("drop_path", "frozen_stages")
PIXELS = ("channels", "mean", "std")
ANCHORS = ("anchor_scale", "anchor_ratios")


@dataclasses.dataclass(frozen=True)
class PretrainedWeights:
    """Pretrained weights.

    Attributes:
      source: as `config.init_from` takes it.
      backbone: fields of `config.model.backbone` that they fit.
      pixels: fields of `config.data` that say which pixels they have seen; {} if they do not tell.
      anchors: those of `config.model.rpn` that say what their deltas start from; likewise.
    """

    source: str
    backbone: Mapping[str, Any]
    pixels: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    anchors: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def frozen(self) -> bool:
        """Whether they are of a ResNet whose batch norm stays as it is."""
        return self.backbone["name"] == "resnet" and self.backbone.get("norm") == "frozen_batch"


def read(source: str) -> PretrainedWeights | None:
    """Reads which backbone weights are for; None where no source is given.

    Checkpoints of a run, and those that tools/convert_torch.py writes, hold their config.

    Raises:
      UserError: there is no such checkpoint, or its backbone is none that is known.
    """
    if not source:
        return None
    params, meta = checkpoint.load_weights(source)
    backbone, config = backbone_of(source, params), meta.get("config")
    if not config:
        return PretrainedWeights(source, backbone)
    model, data = config.get("model", {}), config.get("data", {})
    own = model.get("backbone", backbone)
    told = {name: value for name, value in own.items() if name not in OF_TRAINING}
    pixels = {name: data[name] for name in PIXELS if name in data}
    rpn = model.get("rpn", {})
    anchors = {name: rpn[name] for name in ANCHORS if name in rpn}
    return PretrainedWeights(source, load.tuples(told), load.tuples(pixels), load.tuples(anchors))


def backbone_of(source: str, params: Params) -> dict[str, Any]:
    """Fields of `config.model.backbone` for parameters; raises as `read` does."""
    backbone = params.get("backbone", {})
    blocks = tuple(
        sum(name.startswith("block") for name in backbone.get(f"stage{i}", ())) for i in range(4)
    )
    if "patch_embed" in backbone:
        channels = backbone["patch_embed"]["proj"]["kernel"].shape[-1]
        tables = [
            backbone[f"stage{i}"]["block0"]["attention"]["relative_position_bias"].shape
            for i in range(4)
        ]
        return {
            "name": "swin",
            "embed_dim": int(channels),
            "depths": blocks,
            "num_heads": tuple(int(heads) for _, heads in tables),
            "window_size": (math.isqrt(tables[0][0]) + 1) // 2,
        }
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
