"""Compares what a teacher makes of damaged annotations with the clean ones.

python tools/judge_teacher.py --config=configs/quickstart.py --checkpoint=runs/mixed \
  --config.data.train.annotations=damaged/annotations/train.json \
  --clean=damaged/annotations/train_clean.json

Shows the teacher images as training does, and prints which human boxes it keeps, replaces and
drops, how many of its found boxes were truly missing, and whether replaced boxes were drawn better.
"""

import argparse
import dataclasses
import itertools
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # of a plain checkout

from mixtrain_jax import cli, process
from mixtrain_jax.config import load
from mixtrain_jax.config.resolve import resolve
from mixtrain_jax.data.input import batches
from mixtrain_jax.data.sources import coco
from mixtrain_jax.data.sources.load import complete, load_dataset
from mixtrain_jax.errors import UserError
from mixtrain_jax.evaluation import detect
from mixtrain_jax.mixtraining.criteria import compute_criteria
from mixtrain_jax.mixtraining.step import predict_both_halves, teacher_supervision
from mixtrain_jax.mixtraining.targets import BoxAssignment, TeacherOutput
from mixtrain_jax.models import detector, pixels
from mixtrain_jax.ops import boxes as box_ops
from mixtrain_jax.runtime import checkpoint, processes
from mixtrain_jax.types import Batch

Boxes = tuple[Any, Any]  # numpy: boxes [n, 4] and labels [n]

SAME = 0.5  # IoU at which two boxes mean one object
WELL_DRAWN = 0.75  # IoU with the truth of a box that needs no mending


@dataclasses.dataclass
class Tally:
    """Counts over images.

    `before` and `after` sum IoU with the truth of human boxes that a found one replaces, those
    that are replaced and those that are dropped beside it; `kept_before` and `kept_after` that of
    the kept ones as people and as the teacher drew them.
    """

    images: int = 0
    human: int = 0
    kept: int = 0
    kept_before: float = 0.0
    kept_after: float = 0.0
    dropped: int = 0
    dropped_rightly: int = 0
    replaced: int = 0
    badly_drawn: int = 0
    replaced_badly_drawn: int = 0
    mending: int = 0
    mending_rightly: int = 0
    mended: int = 0
    before: float = 0.0
    after: float = 0.0
    unlabelled: int = 0
    found: int = 0
    found_rightly: int = 0
    unlabelled_found: int = 0

    def add(
        self,
        human: Boxes,
        drawn_anew: Any,
        pseudo: Boxes,
        assignment: BoxAssignment,
        truth: Boxes,
    ) -> None:
        """Counts one image; all boxes are in pixels of its strong view."""
        drawn = _overlap(human, truth).max(axis=1, initial=0)
        anew = _overlap((drawn_anew, human[1]), truth).max(axis=1, initial=0)
        self.kept_before += float(drawn[assignment.kept].sum())
        self.kept_after += float(anew[assignment.kept].sum())
        badly = drawn < WELL_DRAWN
        self.images += 1
        self.human += len(drawn)
        self.kept += int(assignment.kept.sum())
        self.dropped += int(assignment.dropped.sum())
        self.dropped_rightly += int((assignment.dropped & (drawn < SAME)).sum())
        self.replaced += int(assignment.replaced.sum())
        self.badly_drawn += int(badly.sum())
        self.replaced_badly_drawn += int((badly & assignment.replaced).sum())

        right = _overlap(pseudo, truth).max(axis=1, initial=0)
        self.mending += int(assignment.mending.sum())
        self.mending_rightly += int((assignment.mending & (right >= SAME)).sum())
        stands_in = _iou(human[0], pseudo[0]) * assignment.mending
        if stands_in.size:
            covered = assignment.dropped & (stands_in.max(axis=1) > SAME)
            mended = assignment.replaced | covered
            self.mended += int(mended.sum())
            self.before += float(drawn[mended].sum())
            self.after += float(right[stands_in.argmax(axis=1)][mended].sum())

        unlabelled = _iou(truth[0], human[0]).max(axis=1, initial=0) < SAME
        hits = (_overlap(pseudo, truth) >= SAME) & assignment.missing[:, None] & unlabelled
        self.unlabelled += int(unlabelled.sum())
        self.found += int(assignment.missing.sum())
        self.found_rightly += int(hits.any(axis=1).sum())
        self.unlabelled_found += int(hits.any(axis=0).sum())

    def figures(self) -> dict[str, float | None]:
        """Shares and means by name; None where there is nothing to take a share of."""

        def share(part: float, whole: float) -> float | None:
            return part / whole if whole else None

        return {
            "kept": share(self.kept, self.human),
            "kept IoU before": share(self.kept_before, self.kept),
            "kept IoU after": share(self.kept_after, self.kept),
            "dropped": share(self.dropped, self.human),
            "dropped rightly": share(self.dropped_rightly, self.dropped),
            "replaced": share(self.replaced, self.human),
            "mending an image": share(self.mending, self.images),
            "mending precision": share(self.mending_rightly, self.mending),
            "mended IoU before": share(self.before, self.mended),
            "mended IoU after": share(self.after, self.mended),
            "found an image": share(self.found, self.images),
            "found precision": share(self.found_rightly, self.found),
            "found recall": share(self.unlabelled_found, self.unlabelled),
        }

    def report(self) -> str:
        """Shares and means, a line each."""

        def share(part: float, whole: float) -> str:
            return f"{part / whole:.3f}" if whole else "-"

        return (
            f"human boxes {self.human}: kept {share(self.kept, self.human)}, "
            f"replaced {share(self.replaced, self.human)}, "
            f"dropped {share(self.dropped, self.human)} "
            f"(rightly {share(self.dropped_rightly, self.dropped)})\n"
            f"kept {self.kept}: IoU with the truth as people drew them "
            f"{share(self.kept_before, self.kept)}, as they are trained on "
            f"{share(self.kept_after, self.kept)}\n"
            f"found as missing {self.found}: precision {share(self.found_rightly, self.found)}, "
            f"recall {share(self.unlabelled_found, self.unlabelled)}\n"
            f"replaced {self.replaced}: badly drawn "
            f"{share(self.replaced_badly_drawn, self.replaced)} "
            f"(of all human boxes {share(self.badly_drawn, self.human)})\n"
            f"replaced, or dropped beside a found box {self.mended}: IoU with the truth before "
            f"{share(self.before, self.mended)}, after {share(self.after, self.mended)}\n"
            f"found in their place {self.mending}: precision "
            f"{share(self.mending_rightly, self.mending)}"
        )


def of_image(output: TeacherOutput, i: int) -> tuple[Boxes, Any, Boxes, BoxAssignment]:
    """Of one image: human boxes, the same as the teacher drew them, pseudo boxes, their fate."""
    human, seen = output.human, output.human.valid[i]
    boxes, labels = (x[i, len(seen) :] for x in (output.targets.boxes, output.targets.labels))
    assignment = {name: mask[i] for name, mask in output.assignment._asdict().items()}
    assignment |= {name: assignment[name][seen] for name in ("kept", "replaced", "dropped")}
    return (
        (human.boxes[i][seen], human.labels[i][seen]),
        output.targets.boxes[i, : len(seen)][seen],
        (boxes, labels),
        BoxAssignment(**assignment),
    )


def _iou(a: Any, b: Any) -> np.ndarray:
    return np.asarray(box_ops.iou(a, b)) if len(a) and len(b) else np.zeros([len(a), len(b)])


def _overlap(a: Boxes, b: Boxes) -> np.ndarray:
    """IoU of each pair of boxes of one class, 0 for two classes."""
    return _iou(a[0], b[0]) * (a[1][:, None] == b[1])


def judge(asked: ConfigDict, checkpoint_path: str, clean_path: str, images: int) -> Tally:
    """Counts what a teacher makes of the train split, against its clean labels.

    Args:
      asked: the config; the train split is the damaged one.
      checkpoint_path: a workdir, or a checkpoint's path.
      clean_path: COCO file with the true boxes of the same images.
      images: how many to look at; some come twice where there are fewer.

    Raises:
      UserError: the clean labels are of other images or categories.
    """
    always = {"mixtraining.enabled": "true", "mixtraining.start_step": "0", "steps": "1"}
    asked = load.override_all(asked, always)
    dataset = load_dataset(asked.data, "train")
    config = resolve(asked, train=dataset)
    clean = complete(
        coco.read(clean_path, config.data.train.images), "clean", config.data.max_boxes
    )
    rows = {int(number): row for row, number in enumerate(clean.image_ids)}
    if clean.categories != dataset.categories or not rows.keys() >= set(dataset.image_ids.tolist()):
        raise UserError(f"{clean_path} is of other images or categories than the train split")
    params, _ = checkpoint.load_weights(checkpoint_path, "teacher")
    detect.check_parameters(checkpoint_path, params, config.model)

    model = detector.build(config.model)
    method = config.mixtraining

    @jax.jit
    def teach(batch: Batch) -> TeacherOutput:
        batch = pixels.normalise(batch, config.data.mean, config.data.std)
        assert batch.strong is not None  # as start_step is 0
        mixed, normal = predict_both_halves(model, params, batch, method)
        criteria = compute_criteria(model, params, mixed, normal, method, lambda counts: counts)
        output, _ = teacher_supervision(
            model, params, mixed, batch.strong, method, criteria,
            rating_threshold=method.gt_score_threshold, soften=False,
        )  # fmt: skip
        return output

    stream = batches.train_batches(
        dataset,
        config.data,
        seed=config.seed,
        batch_size=config.batch_size,
        first_mixed_step=0,
    )
    tally = Tally()
    for batch in itertools.islice(stream, -(-images // (config.batch_size // 2))):
        assert batch.strong is not None
        output = jax.device_get(teach(batch))
        for i, row in enumerate(batch.strong.index):
            there = rows[int(dataset.image_ids[row])]
            boxes, visible = jax.device_get(
                box_ops.transform(
                    jnp.asarray(clean.boxes[there]), batch.strong.matrix[i], batch.strong.size[i]
                )
            )
            truth = boxes[visible], clean.labels[there][visible]
            tally.add(*of_image(output, i), truth)
    return tally


def main(flags: argparse.Namespace) -> None:
    """Prints what the flags ask for."""
    process.prepare()
    processes.start()
    print(judge(flags.config, flags.checkpoint, flags.clean, flags.images).report())


def parse() -> argparse.ArgumentParser:
    """Returns the command's flags."""
    parser = cli.parser(__doc__)
    parser.add_argument("--checkpoint", required=True, help="a workdir, or a checkpoint's path")
    parser.add_argument("--clean", required=True, help="COCO file with the true boxes")
    parser.add_argument("--images", type=int, default=1000, help="how many to look at")
    return parser


if __name__ == "__main__":
    cli.run(main, parse())
