"""Compares what a teacher makes of damaged annotations with the clean ones.

python tools/judge_teacher.py --config=configs/quickstart.py --checkpoint=runs/mixed \
  --config.data.train.annotations=damaged/annotations/train.json \
  --clean=damaged/annotations/train_clean.json

Shows the teacher photographs as training does, and prints which human boxes it keeps, replaces and
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

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # of a plain checkout

from mixtrain_jax import cli
from mixtrain_jax.data import batches, coco, sources
from mixtrain_jax.evaluation import detect
from mixtrain_jax.mixtraining import step as stepping
from mixtrain_jax.mixtraining.targets import Fate
from mixtrain_jax.models import detector
from mixtrain_jax.ops import boxes as box_ops
from mixtrain_jax.runtime import parallel
from mixtrain_jax.runtime.errors import UserError

Boxes = tuple[Any, Any]  # numpy: boxes [n, 4] and labels [n]

SAME = 0.5  # IoU at which two boxes mean one object
WELL_DRAWN = 0.75  # IoU with the truth of a box that needs no mending


@dataclasses.dataclass
class Tally:
    """Counts over photographs; `before` and `after` sum IoU with the truth of replaced boxes."""

    human: int = 0
    kept: int = 0
    dropped: int = 0
    replaced: int = 0
    badly_drawn: int = 0
    replaced_badly_drawn: int = 0
    before: float = 0.0
    after: float = 0.0
    unlabelled: int = 0
    found: int = 0
    found_rightly: int = 0
    unlabelled_found: int = 0

    def add(self, human: Boxes, pseudo: Boxes, fate: Fate, truth: Boxes) -> None:
        """Counts one photograph; all boxes are in pixels of its strong view."""
        drawn = _overlap(human, truth).max(axis=1, initial=0)
        badly = drawn < WELL_DRAWN
        self.human += len(drawn)
        self.kept += int(fate.kept.sum())
        self.dropped += int(fate.dropped.sum())
        self.replaced += int(fate.replaced.sum())
        self.badly_drawn += int(badly.sum())
        self.replaced_badly_drawn += int((badly & fate.replaced).sum())

        mended = _overlap(pseudo, truth).max(axis=1, initial=0)
        stands_in = _iou(human[0], pseudo[0]) * fate.mending
        if stands_in.size:
            chosen = stands_in.argmax(axis=1)
            self.before += float(drawn[fate.replaced].sum())
            self.after += float(mended[chosen][fate.replaced].sum())

        unlabelled = _iou(truth[0], human[0]).max(axis=1, initial=0) < SAME
        hits = (_overlap(pseudo, truth) >= SAME) & fate.missing[:, None] & unlabelled
        self.unlabelled += int(unlabelled.sum())
        self.found += int(fate.missing.sum())
        self.found_rightly += int(hits.any(axis=1).sum())
        self.unlabelled_found += int(hits.any(axis=0).sum())

    def report(self) -> str:
        """Shares and means, a line each."""

        def share(part: float, whole: float) -> str:
            return f"{part / whole:.3f}" if whole else "-"

        return (
            f"human boxes {self.human}: kept {share(self.kept, self.human)}, "
            f"replaced {share(self.replaced, self.human)}, "
            f"dropped {share(self.dropped, self.human)}\n"
            f"found as missing {self.found}: precision {share(self.found_rightly, self.found)}, "
            f"recall {share(self.unlabelled_found, self.unlabelled)}\n"
            f"replaced {self.replaced}: badly drawn "
            f"{share(self.replaced_badly_drawn, self.replaced)} "
            f"(of all human boxes {share(self.badly_drawn, self.human)}), "
            f"IoU with the truth before {share(self.before, self.replaced)}, "
            f"after {share(self.after, self.replaced)}"
        )


def of_photograph(lesson: stepping.Lesson, i: int) -> tuple[Boxes, Boxes, Fate]:
    """The human and the pseudo boxes of one photograph of a lesson, and what became of them."""
    human, seen = lesson.human, lesson.human.valid[i]
    boxes, labels = (x[i, len(seen) :] for x in (lesson.targets.boxes, lesson.targets.labels))
    fate = {name: mask[i] for name, mask in lesson.fate._asdict().items()}
    fate |= {name: fate[name][seen] for name in ("kept", "replaced", "dropped")}
    return (human.boxes[i][seen], human.labels[i][seen]), (boxes, labels), Fate(**fate)


def _iou(a: Any, b: Any) -> np.ndarray:
    return np.asarray(box_ops.iou(a, b)) if len(a) and len(b) else np.zeros([len(a), len(b)])


def _overlap(a: Boxes, b: Boxes) -> np.ndarray:
    """IoU of each pair of boxes of one class, 0 for two classes."""
    return _iou(a[0], b[0]) * (a[1][:, None] == b[1])


def main(flags: argparse.Namespace) -> None:
    """Prints what the flags ask for."""
    parallel.start()
    config = flags.config
    config.mixtraining.update(enabled=True, start_step=0)
    dataset = sources.load(config.data, "train")
    clean = coco.load(flags.clean, config.data.train.images, config.data.max_boxes, name="clean")
    rows = {int(number): row for row, number in enumerate(clean.image_ids)}
    if clean.categories != dataset.categories or not rows.keys() >= set(dataset.image_ids.tolist()):
        raise UserError(f"{flags.clean} is of other images or categories than the train split")
    params, _ = detect.load_weights(flags.checkpoint, "teacher")
    config.model.num_classes = len(dataset.categories)
    detect.check_parameters(flags.checkpoint, params, config)

    model = detector.build(config.model)
    teach = jax.jit(
        lambda batch: stepping.teach(
            model, params, batch.weak, batch.strong, jax.random.key(0), config.mixtraining
        )[0]
    )
    faults = batches.Faults(config.data.max_bad_share)
    stream = batches.train_batches(
        dataset, config, start_step=0, host_index=0, host_count=1, faults=faults
    )
    steps = -(-flags.photographs // (config.batch_size // 2))
    tally = Tally()
    for batch in itertools.islice(stream, steps):
        assert batch.strong is not None  # as start_step is 0
        lesson = jax.device_get(teach(batch))
        for i, row in enumerate(batch.strong.index):
            there = rows[int(dataset.image_ids[row])]
            boxes, visible = jax.device_get(
                box_ops.transform(
                    jnp.asarray(clean.boxes[there]), batch.strong.matrix[i], batch.strong.size[i]
                )
            )
            truth = boxes[visible], clean.labels[there][visible]
            tally.add(*of_photograph(lesson, i), truth)
    print(tally.report())


def parse() -> argparse.ArgumentParser:
    """Returns the command's flags."""
    parser = cli.parser(__doc__)
    parser.add_argument("--checkpoint", required=True, help="a workdir, or a checkpoint's path")
    parser.add_argument("--clean", required=True, help="COCO file with the true boxes")
    parser.add_argument("--photographs", type=int, default=1000, help="how many to look at")
    return parser


if __name__ == "__main__":
    cli.run(main, parse())
