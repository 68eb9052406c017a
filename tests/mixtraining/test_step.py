"""The training step: what each half gives, guards, accumulation, any number of devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mixtrain_jax.mixtraining import step as steps
from mixtrain_jax.mixtraining import teacher as teaching
from mixtrain_jax.mixtraining.criteria import Criteria
from mixtrain_jax.models.roi_heads import TeacherAnswer
from mixtrain_jax.types import Targets
from tests.mixtraining import small


@pytest.fixture(scope="module")
def world():
    """Config, model, optimizer, a state after two steps, the compiled step and a batch."""
    config = small.config()
    model, optimizer, state = small.build(config)
    step = jax.jit(small.step_of(config, model, optimizer))
    batch = small.mixed_batch(0, 2)
    for _ in range(2):
        state, _, _ = step(state, batch)
    return config, model, optimizer, state, step, batch


def test_teacher_follows_before_the_step(world):
    config, *_, state, step, batch = world
    after, _, _ = step(state, batch)
    m = config.mixtraining.ema_momentum * 2 / config.mixtraining.ema_warmup_steps
    old, new = small.leaves(state), small.leaves(after)
    for name in small.leaves(state.teacher):
        expected = m * old[f".teacher{name}"] + (1 - m) * old[f".student{name}"]
        np.testing.assert_allclose(new[f".teacher{name}"], expected, rtol=1e-5, atol=1e-7)
    assert int(after.step) == 3


def test_box_counts_add_up(world):
    *_, state, step, batch = world
    _, metrics, output = step(state, batch)
    human = np.asarray(batch.strong.valid)
    sums = sum(
        np.asarray(getattr(output.assignment, n)).astype(int)
        for n in ("kept", "replaced", "dropped")
    )
    np.testing.assert_array_equal(sums, human.astype(int))
    total = sum(metrics[f"boxes/{name}"] for name in ("kept", "replaced", "dropped"))
    np.testing.assert_allclose(total, metrics["boxes/human"], rtol=1e-6)
    assert 0 < metrics["teacher/rating"] < 1


def test_loss_is_both_halves_with_the_weight(world):
    config, *_, state, step, batch = world
    _, metrics, _ = step(state, batch)
    halves = {
        half: sum(v for k, v in metrics.items() if k.startswith(half) and "accuracy" not in k)
        for half in ("normal", "mixed")
    }
    expected = halves["normal"] + config.mixtraining.mixed_loss_weight * halves["mixed"]
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)


def test_normal_half_ignores_the_mixed_half(world):
    config, model, _, state, _, batch = world
    key = jax.random.key(3)
    method = config.mixtraining.copy_and_resolve_references()
    method.mixed_loss_weight = 0.0

    @jax.jit
    def gradient(batch):
        look = teaching.teacher_predictions(model, state.teacher, batch.weak, batch.strong)
        _, mixed = steps.teacher_supervision(
            model, state.teacher, look, batch.strong, method, Criteria(jnp.float32(0.9)),
            rating_threshold=0.9, soften=True,
        )  # fmt: skip
        normal = steps.human_supervision(batch.normal)
        loss = lambda p: steps.student_loss(  # noqa: E731
            p, batch, normal, mixed, key, model, method, lambda x: x
        )[0]
        return jax.grad(loss)(state.student)

    other = small.mixed_batch(50, 2)
    first = gradient(batch)
    second = gradient(batch.replace(weak=other.weak, strong=other.strong))
    for name, value in small.leaves(first).items():
        np.testing.assert_allclose(
            value, small.leaves(second)[name], atol=1e-5 * max(1, np.abs(value).max()), err_msg=name
        )
    assert max(np.abs(v).max() for v in small.leaves(first).values()) > 0


def _is_schedule(state):
    return isinstance(state, optax.ScaleByScheduleState)


def test_a_bad_picture_leaves_weights_and_optimizer_alone(world):
    *_, state, step, batch = world
    image = batch.normal.image.copy()
    image[0, 5, 5, 0] = np.nan
    after, metrics, _ = step(state, batch.replace(normal=batch.normal.replace(image=image)))
    assert metrics["update/bad"] == 1
    moved = []
    for part in ("student", "optimizer"):
        before, now = small.leaves(getattr(state, part)), small.leaves(getattr(after, part))
        for name, value in before.items():
            if not np.array_equal(now[name], value):
                moved.append(name)
                assert now[name] == value + 1
    (place,) = moved  # of the schedule: the rate of the next step is that which is told
    schedule = [
        s for s in jax.tree.leaves(after.optimizer, is_leaf=_is_schedule) if _is_schedule(s)
    ]
    assert place.endswith("count") and [int(s.count) for s in schedule] == [int(after.step)]
    assert all(np.isfinite(v).all() for v in small.leaves(after.teacher).values())
    assert int(after.step) == int(state.step) + 1


def test_a_teacher_that_finds_nothing_is_harmless(world):
    *_, state, step, batch = world

    def blind(path, leaf):  # to it, all is background
        logits = jax.tree_util.keystr(path).endswith("['head0']['logits']['bias']")
        return leaf.at[-1].add(50) if logits else leaf

    student, teacher = (
        jax.tree_util.tree_map_with_path(blind, params) for params in (state.student, state.teacher)
    )
    _, metrics, output = step(state.replace(student=student, teacher=teacher), batch)
    assert not output.detections.valid.any() and metrics["boxes/missing"] == 0
    assert np.isfinite(metrics["loss"]) and metrics["update/bad"] == 0


def test_parts_are_averaged(world):
    config, model, optimizer, state, _, batch = world
    in_two = config.copy_and_resolve_references()
    in_two.accumulate = 2
    in_two.optimizer.name = config.optimizer.name
    few = batch.strong.valid.copy()
    few[0, 1:] = False
    blind = batch.replace(strong=batch.strong.replace(valid=few))
    whole, told, _ = jax.jit(small.step_of(in_two, model, optimizer))(state, blind)

    step = jax.jit(small.step_of(config, model, small.Recorder()))
    parts = [jax.tree.map(lambda x, i=i: x[i : i + 1], blind) for i in range(2)]
    taken = [step(state.replace(optimizer=state.student), part) for part in parts]
    grads = [after.optimizer for after, _, _ in taken]
    boxes, ratings = (
        np.array([float(metrics[name]) for _, metrics, _ in taken])
        for name in ("boxes/human", "teacher/rating")
    )
    assert boxes[0] < boxes[1]  # the mean over boxes is not that of the parts' means
    np.testing.assert_allclose(told["teacher/rating"], (boxes * ratings).sum() / boxes.sum(), 1e-5)
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *grads)
    updates, _ = optimizer.update(mean, state.optimizer, state.student)
    for name, value in small.leaves(updates).items():
        moved = small.leaves(whole.student)[name] - small.leaves(state.student)[name]
        np.testing.assert_allclose(moved, value, atol=2e-6, rtol=2e-2, err_msg=name)


def test_soft_background_weights(world):
    _, model, _, state, _, batch = world
    view = batch.normal
    chances = jnp.array([0.25, 0.75])[:, None]

    def records(m):
        pyramid = m.features(view.image, view.size)
        targets = Targets(view.boxes, view.labels, view.valid)
        keys = jax.random.split(jax.random.key(0), 2)

        def ask_teacher(stage, rois):
            background = jnp.broadcast_to(chances, rois.shape[:2])[..., None]
            classes = jnp.repeat((1 - background) / small.CLASSES, small.CLASSES, axis=-1)
            return TeacherAnswer(jnp.concatenate([classes, background], axis=-1))

        return m.losses(pyramid, view.size, targets, keys, lambda x: x, ask_teacher)[1]

    (record,) = jax.jit(lambda p: model.apply({"params": p}, method=records))(state.student)
    background = np.asarray(record.labels) == small.CLASSES
    weights = np.where(background, np.broadcast_to(chances, background.shape), 1.0)
    weights = weights * np.asarray(record.valid)
    weights *= record.valid.sum() / weights.sum()
    np.testing.assert_allclose(record.weights, weights, rtol=1e-5)
    assert background.any() and (~background & np.asarray(record.valid)).any()


DEVICES = """
import sys
import jax, numpy as np
from mixtrain_jax.runtime import parallel
from tests.mixtraining import small

plain = sys.argv[2] == "plain"
config = small.config(mixtraining__enabled=not plain)
if sys.argv[2] == "soft":
    config.mixtraining.update(
        auto_share=True, soften_normal=True, mend_normal=True, auto_count=0.5,
        rate_given_object=True, balance_classes=True, normal_gt_score_threshold=0.3,
    )
parts = 2 if sys.argv[2] == "accumulated" else 1
config.accumulate = parts
count = jax.device_count()
# The parts of all devices together have the same images, however many devices there are.
order = np.arange(8).reshape(parts, count, -1).transpose(1, 0, 2).ravel()
model, optimizer, state = small.build(config)
step = parallel.map_step(small.step_of(config, model, optimizer, parallel.sum_over_devices))
state = parallel.replicate(state)
for seed in range(3):
    batch = jax.tree.map(lambda x: x[order], small.mixed_batch(seed, 8))
    if plain:
        batch = batch.replace(weak=None, strong=None)
    state, metrics, output = step(state, parallel.shard(batch))
found = np.zeros(8)
if output is not None:
    found = parallel.gather(output)._asdict()["ratings"][np.argsort(order)]
metrics = {name: np.asarray(value) for name, value in metrics.items()}
np.savez(sys.argv[1], ratings=found, **small.leaves(state), **metrics)
print(jax.device_count())
"""


@pytest.mark.multidevice
@pytest.mark.parametrize("kind", ["plain", "soft", "accumulated"])
def test_any_number_of_devices_takes_the_same_steps(on_devices, tmp_path, kind):
    found = {}
    counts = (1, 2) if kind == "accumulated" else (1, 2, 8)
    for count in counts:
        path = tmp_path / f"{count}.npz"
        assert on_devices(count, DEVICES, path, kind).split()[-1] == str(count)
        found[count] = dict(np.load(path))
    for count in counts[1:]:
        for name, value in found[1].items():
            scale = max(1e-3, np.abs(value).max())
            np.testing.assert_allclose(
                found[count][name], value, atol=2e-4 * scale, err_msg=f"{name}, {count} devices"
            )
