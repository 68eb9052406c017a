"""What a config says of a backbone reaches it."""

import jax.numpy as jnp
import pytest

from mixtrain_jax.config import recipes
from mixtrain_jax.errors import UserError
from mixtrain_jax.models.backbones import build_backbone
from mixtrain_jax.models.resnet import ResNet
from mixtrain_jax.models.swin import Swin


@pytest.mark.parametrize(
    ("name", "kind", "fields"),
    [
        ("swin", Swin, dict(embed_dim=24, depths=(1, 2, 3, 4), num_heads=(2, 4, 6, 8),
                            window_size=5, drop_path=0.37)),
        ("resnet", ResNet, dict(depth=34, base_channels=40, style="caffe", norm="group",
                                frozen_stages=2)),
    ],
)  # fmt: skip
def test_a_config_reaches_its_backbone(name, kind, fields):
    options = recipes.base().model.backbone
    options.update(name=name, **fields)
    built = build_backbone(options, jnp.bfloat16, True)
    assert isinstance(built, kind) and built.remat and built.dtype == jnp.bfloat16
    assert {field: getattr(built, field) for field in fields} == fields
    assert not build_backbone(options, jnp.float32, False).remat


def test_there_is_no_other():
    options = recipes.base().model.backbone
    options.name = "vit"
    with pytest.raises(UserError, match="choose 'swin' or 'resnet'"):
        build_backbone(options, jnp.float32, False)
