"""torchvision on the same machine: its Faster R-CNN trained, its NMS and RoIAlign.

As fast as PyTorch users run it: torch.compile, bf16 autocast, channels last. Pictures are random
and of the size our own rows have; on a CPU everything is tiny and only shows that it runs.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
import torchvision
from torchvision.models.detection import fasterrcnn_resnet50_fpn
from torchvision.ops import MultiScaleRoIAlign, nms

from tools.benchmarks import measure, models, ops

_GPU = torch.cuda.is_available()
_DEVICE = torch.device("cuda" if _GPU else "cpu")


def run(batch: int, budget: float) -> list[measure.Row]:
    """Measures training with `batch` pictures a step (0: 16), then the two operations."""
    rows = [_training(batch or (16 if _GPU else 1), budget)]
    for title, call in _cases():
        rows.append({"case": f"torchvision: {title}"} | measure.seconds(call, budget, _wait))
    return rows


def _wait(result: Any) -> None:
    del result
    if _GPU:
        torch.cuda.synchronize()


def _training(batch: int, budget: float) -> measure.Row:
    """Steps of a Faster R-CNN with ResNet-50 and FPN: forward, backward, SGD."""
    size = (800, 1344) if _GPU else (128, 160)
    model = fasterrcnn_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=models.CLASSES + 1,
        min_size=size[0],
        max_size=size[1],
        norm_layer=torchvision.ops.FrozenBatchNorm2d,
        trainable_backbone_layers=3,
    )
    model = model.to(_DEVICE, memory_format=torch.channels_last).train()
    if _GPU:  # what has static shapes; proposals and targets have not
        model.backbone = torch.compile(model.backbone)
        model.rpn.head = torch.compile(model.rpn.head)
        model.roi_heads.box_head = torch.compile(model.roi_heads.box_head)
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr=1e-3, momentum=0.9
    )
    seen = models.view(size, batch, slots=10, seed=0)
    images = list(torch.from_numpy(seen.image).permute(0, 3, 1, 2).div(255).to(_DEVICE))
    targets = [
        {
            "boxes": torch.from_numpy(boxes).to(_DEVICE),
            "labels": torch.from_numpy(labels).long().to(_DEVICE) + 1,
        }
        for boxes, labels in zip(seen.boxes, seen.labels, strict=True)
    ]

    def step() -> torch.Tensor:
        with torch.autocast(_DEVICE.type, torch.bfloat16):
            loss = sum(model(images, targets).values())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.detach()

    found = measure.seconds(step, budget, _wait)
    peak = torch.cuda.max_memory_allocated() / 1e9 if _GPU else measure.peak_gb()
    title = "torchvision: Faster ResNet-50 plain step"
    return {"case": title, "size": f"{size[0]}x{size[1]}", "batch": batch, "peak_gb": peak} | found


def _cases() -> Iterator[tuple[str, Any]]:
    rng = np.random.default_rng(0)
    boxes, scores = ops.crowd(rng, ops.LEVELS * 2000)
    levels = [
        (torch.from_numpy(b).to(_DEVICE), torch.from_numpy(s).to(_DEVICE))
        for b, s in zip(
            boxes.reshape(ops.LEVELS, -1, 4), scores.reshape(ops.LEVELS, -1), strict=True
        )
    ]
    yield (
        f"NMS of 2000 boxes on {ops.LEVELS} levels",
        lambda: [nms(*level, 0.7) for level in levels],
    )
    dtype = torch.float16 if _GPU else torch.float32  # its kernel knows no bfloat16
    pyramid = {
        str(level): torch.from_numpy(features.astype(np.float32))
        .permute(0, 3, 1, 2)
        .to(_DEVICE, dtype)
        .requires_grad_()
        for level, features in enumerate(ops.features(rng))
    }
    pool = MultiScaleRoIAlign(list(pyramid), output_size=7, sampling_ratio=-1)
    for count in (512, 1000):
        rois = [torch.from_numpy(ops.rois_of_all_sizes(rng, count)).to(_DEVICE, dtype)]
        call = partial(pool, pyramid, rois, [ops.SIZE])
        yield f"RoIAlign of {count} RoIs, forward", torch.no_grad()(call)
        weights = torch.randn(count, ops.CHANNELS, 7, 7, device=_DEVICE, dtype=dtype)

        def both(call=call, weights=weights) -> tuple[torch.Tensor, ...]:
            return torch.autograd.grad((call() * weights).sum(), list(pyramid.values()))

        yield f"RoIAlign of {count} RoIs, forward and backward", both
