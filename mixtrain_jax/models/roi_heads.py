"""The second stage: box heads that name and refine regions of interest (RoIs).

Faster R-CNN has one head, Cascade R-CNN three in a row; both are the same code with one or three
stages. Heads read 7x7 RoIAlign features, predict class logits (background last) and deltas, and
each next stage looks at the boxes as the one before left them. All functions take a batch of B
images with K RoIs each.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from mixtrain_jax.models.layers import Dense
from mixtrain_jax.models.rpn import STRIDES, Proposals, Pyramid
from mixtrain_jax.ops import boxes as box_ops
from mixtrain_jax.ops import matching, nms
from mixtrain_jax.ops.roi_align import roi_align
from mixtrain_jax.types import Array, Detections, SumOverDevices, Targets


class TeacherAnswer(NamedTuple):
    """What a teacher says of RoIs.

    Attributes:
      probabilities: [B, K, classes + 1] float32, the background last.
      label_share: [B, K] float32, how much of a RoI's class target is its label; the rest is the
        probabilities. None is the soft background: targets are the labels, and the probability of
        the background weighs the RoIs labelled background.
    """

    probabilities: Array
    label_share: Array | None = None


# From (stage, RoIs [B, K, 4]) to the teacher's answer: RoIs are sampled inside the losses.
AskTeacher = Callable[[int, Array], TeacherAnswer]


class BoxHead(nn.Module):
    """Two fully connected layers, then class logits and deltas."""

    num_classes: int
    fc_channels: int = 1024
    class_agnostic: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, pooled: Array) -> tuple[Array, Array]:
        """Maps [B, K, 7, 7, C] features to logits [B, K, classes + 1] and deltas.

        Deltas are [B, K, 4], or [B, K, classes, 4] when the head has one box for each class; both
        float32.
        """
        xavier = nn.initializers.xavier_uniform()
        hidden = pooled.reshape(*pooled.shape[:2], -1)
        for name in ("fc1", "fc2"):
            layer = Dense(self.fc_channels, dtype=self.dtype, kernel_init=xavier, name=name)
            # Joined through all layers, a few hundred RoIs made TPUs' compiler run out of stack.
            hidden = jax.lax.optimization_barrier(nn.relu(layer(hidden)))
        logits = Dense(
            self.num_classes + 1,
            dtype=self.dtype,
            kernel_init=nn.initializers.normal(0.01),
            name="logits",
        )(hidden)
        boxes = 1 if self.class_agnostic else self.num_classes
        deltas = Dense(
            4 * boxes,
            dtype=self.dtype,
            kernel_init=nn.initializers.normal(0.001),
            name="deltas",
        )(hidden).astype(jnp.float32)
        if not self.class_agnostic:
            deltas = deltas.reshape(*deltas.shape[:2], boxes, 4)
        return logits.astype(jnp.float32), deltas


class StageRecord(NamedTuple):
    """What one stage trained on.

    Attributes:
      rois: [B, K, 4] float32 sampled boxes.
      labels: [B, K] int32, the background being the last class.
      weights: [B, K] float32 weights of the class loss.
      valid: [B, K] bool, False for padding.
      correct: [B, K] bool, whether the student's best class was the label.
    """

    rois: Array
    labels: Array
    weights: Array
    valid: Array
    correct: Array


class SampledRoIs(NamedTuple):
    """What one stage is trained on.

    Attributes:
      rois: [B, K, 4] float32.
      labels: [B, K] int32, the background being the last class.
      target_deltas: [B, K, 4] float32 to the target box that each is matched with.
      positive: [B, K] bool, matched with a target box.
      valid: [B, K] bool, False for padding.
      chosen: [B, K] int32, places among the target boxes and, after them, the candidates.
    """

    rois: Array
    labels: Array
    target_deltas: Array
    positive: Array
    valid: Array
    chosen: Array


class RoIHead(nn.Module):
    """The stages of a detector: `head0` of Faster R-CNN, `head0` to `head2` of Cascade R-CNN."""

    num_classes: int
    config: Any  # config.model.roi_head
    dtype: Any = jnp.float32

    def setup(self) -> None:
        for stage in range(self.stages):
            head = BoxHead(
                self.num_classes,
                self.config.fc_channels,
                self.config.class_agnostic,
                self.dtype,
            )
            setattr(self, f"head{stage}", head)

    @property
    def stages(self) -> int:
        return len(self.config.positive_ious)

    def predict(
        self, stage: int, pyramid: Pyramid, size: Array, boxes: Array
    ) -> tuple[Array, Array]:
        """Pools features of boxes, and runs one stage's head on them.

        Args:
          stage: its number, from 0.
          pyramid: features of B images.
          size: [B, 2] int32 height and width of the images.
          boxes: [B, K, 4] in pixels of the images.

        Returns:
          Logits [B, K, classes + 1], the background last, and deltas [B, K, 4], or [B, K, classes,
          4] where each class has its own.
        """
        pooled = roi_align(tuple(pyramid[:4]), boxes, size, strides=STRIDES[:4])
        return getattr(self, f"head{stage}")(pooled)

    def refine(self, stage: int, boxes: Array, deltas: Array, labels: Array, size: Array) -> Array:
        """Decodes each box by the deltas of its label and clips it; no gradient flows through.

        Args:
          stage: whose deltas they are.
          boxes: [B, K, 4] in pixels of the images.
          deltas: as `predict` returns them.
          labels: [B, K] int32.
          size: [B, 2] int32 height and width of the images.

        Returns:
          [B, K, 4] in the same pixels.
        """
        own, stds = self._deltas_of(labels, deltas), tuple(self.config.delta_stds[stage])
        return jax.lax.stop_gradient(box_ops.decode(boxes, own, stds=stds, size=size))

    def _deltas_of(self, labels: Array, deltas: Array) -> Array:
        """Each box's deltas [B, K, 4] for its label [B, K]; background takes the last class's."""
        if self.config.class_agnostic:
            return deltas
        index = jnp.clip(labels, 0, self.num_classes - 1)[..., None, None]
        return jnp.take_along_axis(deltas, index, axis=-2)[..., 0, :]

    def run_stages(self, pyramid: Pyramid, size: Array, boxes: Array) -> tuple[Array, Array, Array]:
        """Runs all stages with refinement by the best class in between; arguments of `predict`.

        Returns:
          The stages' mean logits [B, K, classes + 1], the last stage's boxes and its deltas.
        """
        all_logits = []
        for stage in range(self.stages):
            logits, deltas = self.predict(stage, pyramid, size, boxes)
            all_logits.append(logits)
            if stage + 1 < self.stages:
                best = logits[..., :-1].argmax(-1)
                boxes = self.refine(stage, boxes, deltas, best, size)
        return jnp.stack(all_logits).mean(0), boxes, deltas

    def score(self, pyramid: Pyramid, size: Array, boxes: Array, stage: int | None = None) -> Array:
        """Returns class probabilities [B, K, classes + 1] of boxes, by one stage or by all.

        With `stage` None the boxes go through all stages and the logits are averaged, as at test
        time.
        """
        if stage is None:
            logits, _, _ = self.run_stages(pyramid, size, boxes)
        else:
            logits, _ = self.predict(stage, pyramid, size, boxes)
        return nn.softmax(logits)

    def score_and_refine(self, pyramid: Pyramid, size: Array, boxes: Array) -> tuple[Array, Array]:
        """Scores given boxes as at test time, and draws them anew.

        Returns:
          Class probabilities [B, K, classes + 1] of boxes [B, K, 4], and the boxes [B, K, 4] as the
          last stage refines them for their best class, clipped to the image.
        """
        logits, boxes, deltas = self.run_stages(pyramid, size, boxes)
        best = logits[..., :-1].argmax(-1)
        return nn.softmax(logits), self.refine(self.stages - 1, boxes, deltas, best, size)

    def detect(
        self, pyramid: Pyramid, size: Array, proposals: Proposals, scale: Array | None = None
    ) -> tuple[Detections, Array]:
        """Finds objects: stages, mean logits, decode, clip, then class-wise NMS.

        Args:
          pyramid: features of B images.
          size: [B, 2] int32 height and width of the images.
          proposals: where to look.
          scale: [B, 2] float32 (x, y) scale of the view. Boxes are divided by it before NMS, so
            that they come in pixels of the original image; None leaves them in the view.

        Returns:
          Detections, and [B] bool: False where more pairs of box and class passed the score
          threshold than `nms_candidates` and those beyond could have mattered.
        """
        logits, boxes, deltas = self.run_stages(pyramid, size, proposals.boxes)
        stds = tuple(self.config.delta_stds[-1])
        if self.config.class_agnostic:
            boxes = box_ops.decode(boxes, deltas, stds=stds, size=size)
        else:
            boxes = box_ops.decode(boxes[..., None, :], deltas, stds=stds, size=size)
        if scale is not None:
            ones = (1,) * (boxes.ndim - 2)
            boxes = boxes / jnp.tile(scale, 2).reshape(-1, *ones, 4)

        def of_image(
            boxes: Array, probabilities: Array, valid: Array
        ) -> tuple[Array, Array, Array, Array, Array]:
            return nms.class_nms(
                boxes,
                probabilities[:, :-1],
                valid,
                score_threshold=self.config.score_threshold,
                iou_threshold=self.config.nms_iou,
                count=self.config.detections,
                candidates=self.config.nms_candidates,
            )

        boxes, scores, labels, valid, exact = jax.vmap(of_image)(
            boxes, nn.softmax(logits), proposals.valid
        )
        return Detections(boxes, scores, labels, valid), exact

    def losses(
        self,
        pyramid: Pyramid,
        size: Array,
        proposals: Proposals,
        targets: Targets,
        keys: Array,
        sum_over_devices: SumOverDevices,
        ask_teacher: AskTeacher | None = None,
    ) -> tuple[dict[str, Array], list[StageRecord]]:
        """Classification and box losses of every stage on freshly matched and sampled RoIs.

        Each stage adds the true boxes to its candidates, matches, samples, and hands its refined
        samples (without the added true boxes) to the next. Losses are normalised over all devices:
        the class loss by the number of RoIs with a weight, the box loss by the number of sampled
        RoIs.

        Args:
          pyramid: features of B images.
          size: [B, 2] int32 height and width of the images.
          proposals: candidates of the first stage.
          targets: the boxes to be found.
          keys: [B] PRNG keys, one per image, for sampling RoIs.
          sum_over_devices: sums arrays over all devices.
          ask_teacher: what the teacher says of RoIs, see `TeacherAnswer`. Where labels have a share
            all RoIs weigh 1, as without a teacher.

        Returns:
          The weighted losses by name (this device's share of each), and a record of each stage.
        """
        losses, records = {}, []
        boxes, valid = proposals.boxes, proposals.valid
        for stage in range(self.stages):
            sample = self._sample(stage, boxes, valid, targets, keys)
            rois, labels = sample.rois, sample.labels
            logits, deltas = self.predict(stage, pyramid, size, rois)
            answer = None if ask_teacher is None else ask_teacher(stage, rois)
            goal, weights = self._class_targets(sample, answer, sum_over_devices)
            entropy = optax.softmax_cross_entropy(logits, goal)
            weighted = sum_over_devices((weights > 0).sum())
            class_loss = (weights * entropy).sum() / jnp.maximum(weighted, 1)
            misses = self._deltas_of(labels, deltas) - sample.target_deltas
            distance = _smooth_l1(misses, self.config.smooth_l1_beta).sum(-1)
            box_loss = jnp.where(sample.positive, distance, 0).sum()
            box_loss /= jnp.maximum(sum_over_devices(sample.valid.sum()), 1)

            losses[f"stage{stage}_class"] = self.config.loss_weights[stage] * class_loss
            losses[f"stage{stage}_boxes"] = self.config.loss_weights[stage] * box_loss
            correct = sample.valid & (logits.argmax(-1) == labels)
            records.append(StageRecord(rois, labels, weights, sample.valid, correct))
            if stage + 1 < self.stages:
                best = logits[..., :-1].argmax(-1)
                named = jnp.where(labels == self.num_classes, best, labels)
                boxes = self.refine(stage, rois, deltas, named, size)
                valid = sample.valid & (sample.chosen >= targets.boxes.shape[1])
        return losses, records

    def _class_targets(
        self, sample: SampledRoIs, answer: TeacherAnswer | None, sum_over_devices: SumOverDevices
    ) -> tuple[Array, Array]:
        """The class targets [B, K, classes + 1] of sampled RoIs, and their weights [B, K].

        The soft background weighs RoIs, and all weights sum to as much as without it; soft labels
        change the targets.
        """
        weights = sample.valid.astype(jnp.float32)
        goal = jax.nn.one_hot(sample.labels, self.num_classes + 1)
        if answer is not None and answer.label_share is not None:
            share = answer.label_share[..., None]
            goal = share * goal + (1 - share) * answer.probabilities
        elif answer is not None:
            background = sample.valid & (sample.labels == self.num_classes)
            weights = jnp.where(background, answer.probabilities[..., -1], weights)
            sampled, weight = sum_over_devices((sample.valid.sum(), weights.sum()))
            weights *= sampled / jnp.maximum(weight, 1)
        return jax.lax.stop_gradient((goal, weights))

    def _sample(
        self, stage: int, boxes: Array, valid: Array, targets: Targets, keys: Array
    ) -> SampledRoIs:
        """Matches target boxes and candidates to the targets and samples RoIs, image by image."""
        cfg = self.config
        iou = cfg.positive_ious[stage]
        stds = tuple(cfg.delta_stds[stage])

        def of_image(boxes: Array, valid: Array, targets: Targets, key: Array) -> SampledRoIs:
            match = matching.match(
                boxes,
                targets.boxes,
                targets.valid,
                valid=valid,
                positive=iou,
                negative=iou,
                low_quality=None,
            )
            candidates = jnp.concatenate([targets.boxes, boxes])
            gt_index = jnp.concatenate([jnp.arange(len(targets.boxes)), match.gt_index])
            kind = jnp.concatenate([jnp.where(targets.valid, 1, -1), match.kind])
            sample = matching.sample(
                jax.random.fold_in(key, stage),
                kind == 1,
                kind == 0,
                cfg.samples,
                int(cfg.samples * cfg.positive_share),
            )
            rois = jnp.where(sample.valid[:, None], candidates[sample.index], 0)
            gt_index = gt_index[sample.index]
            labels = jnp.where(sample.positive, targets.labels[gt_index], self.num_classes)
            deltas = box_ops.encode(rois, targets.boxes[gt_index], stds)
            return SampledRoIs(rois, labels, deltas, sample.positive, sample.valid, sample.index)

        return jax.lax.stop_gradient(jax.vmap(of_image)(boxes, valid, targets, keys))


def _smooth_l1(difference: Array, beta: float) -> Array:
    """Huber's loss scaled to slope 1 (Fast R-CNN, eq. 3, at beta 1); plain L1 when beta is 0."""
    distance = jnp.abs(difference)
    if not beta:
        return distance
    return jnp.where(distance < beta, 0.5 * distance**2 / beta, distance - 0.5 * beta)
