"""What depends on data and devices is filled in once, in a new config."""

import types

import numpy as np
import pytest

from mixtrain_jax.config import load
from mixtrain_jax.config.resolve import describe, resolve
from mixtrain_jax.data.sources.image_files import Reading
from mixtrain_jax.errors import UserError


def dataset(images=100, classes=3, name="train"):
    """What resolving looks at: how many images of which sizes, and the categories."""
    sizes = np.tile(np.array([[480, 640], [640, 480]], np.int32), (images // 2, 1))
    categories = [{"id": i, "name": str(i)} for i in range(classes)]

    class Images(types.SimpleNamespace):
        def __len__(self):
            return len(self.sizes)

    return Images(sizes=sizes, categories=categories, name=name, reading=Reading())


@pytest.mark.parametrize(
    ("recipe", "steps"), [("faster", 351_840), ("cascade", 351_840), ("faster_r50", 703_680)]
)
def test_recipes_train_as_long_as_the_released_code(recipe, steps):
    config = resolve(load.load(recipe), train=dataset())
    assert config.steps == steps
    drops = [round(steps * share) for share in (2 / 3, 11 / 12)]
    assert list(config.optimizer.drop_steps) == drops


@pytest.mark.parametrize(("batch", "steps"), [(8, 351_840), (16, 175_920), (64, 43_980)])
def test_an_epoch_is_as_many_images_whatever_the_batch(batch, steps):
    asked = load.load("faster:plain,epochs=24", {"batch_size": str(batch)})
    assert resolve(asked, train=dataset()).steps == steps


def test_own_data_once_an_epoch():
    changes = {"images_per_epoch": "None", "epochs": "3", "batch_size": "8"}
    config = resolve(load.load("faster", changes), train=dataset(images=100))
    assert (config.images_per_epoch, config.steps) == (100, 38)
    assert "3.04 epochs of 100 images (3.04 times the training set)" in describe(config, dataset())


def test_the_asked_config_stays_as_it_is_and_the_result_cannot_change():
    asked = load.load("faster")
    before = asked.to_dict()
    config = resolve(asked, train=dataset(), val=dataset(name="val"), devices=8)
    assert asked.to_dict() == before
    assert asked.steps is None and asked.data.train.buckets == ()
    assert config.model.num_classes == 3
    for split in ("train", "val"):
        buckets = config.data[split].buckets
        assert buckets and all(side % 32 == 0 for bucket in buckets for side in bucket)
    with pytest.raises(AttributeError):
        config.steps = 1


def test_resolving_what_is_resolved_changes_nothing():
    once = resolve(load.load("faster"), train=dataset(), val=dataset())
    twice = resolve(once, train=dataset(), val=dataset())
    assert once.to_dict() == twice.to_dict()


def test_images_nobody_has_seen_have_buckets_too():
    config = resolve(load.load("faster"), classes=80)
    assert config.data.val.buckets == ((800, 1344), (1344, 800), (1344, 1344))


@pytest.mark.parametrize(("devices", "images"), [(1, 8), (3, 9), (8, 8), (16, 16)])
def test_an_evaluation_takes_eight_images_at_least_and_as_many_on_each_device(devices, images):
    asked = load.load("faster", {"mixtraining.enabled": "False", "batch_size": "48"})
    config = resolve(asked, train=dataset(), val=dataset(name="val"), devices=devices)
    assert config.eval.batch_size == images


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"model.num_classes": "5"}, {}, "num_classes is 5, but train has 3 categories"),
        (
            {"batch_size": "12"},
            {},
            r"batch_size is 12: make it a multiple of 16 \(8 devices x 2 .*, or use 6 of the",
        ),
        ({"eval.batch_size": "12"}, {}, "eval.batch_size is 12: make it a multiple of 8"),
        ({"accumulate": "2"}, {}, r"batch_size is 16: make it a multiple of 32"),
        ({"epochs": "None"}, {}, "set config.steps or config.epochs"),
        ({"data.val.buckets": "((64, 64),)"}, {}, "fits in none of config.data.val.buckets"),
        ({"data.train.buckets": "((64, 64),)"}, {}, "fits in none of config.data.train.buckets"),
    ],
)
def test_contradictions_are_one_line(changes, options, message):
    with pytest.raises(UserError, match=message):
        resolve(
            load.load("faster", changes),
            train=dataset(),
            val=dataset(name="val"),
            devices=8,
            **options,
        )


def test_one_class_cannot_be_rated_given_an_object():
    asked = load.load("faster", {"mixtraining.rate_given_object": "True"})
    assert resolve(asked, train=dataset()).mixtraining.rate_given_object
    with pytest.raises(UserError, match="rate_given_object rates all boxes of one class 1"):
        resolve(asked, train=dataset(classes=1))


@pytest.mark.parametrize(
    ("fields", "steps", "start"),
    [
        ({"epochs": "8"}, 100, 82),  # 8 images in a batch, 0.818 of training is plain
        ({"epochs": "8", "batch_size": "16"}, 50, 41),
        ({"epochs": "8", "mixtraining.start_step": "7"}, 100, 7),
        ({"steps": "10"}, 10, 8),
        ({"steps": "10", "epochs": "8"}, 10, 8),
    ],
)
def test_mixing_starts_at_a_share_of_training(fields, steps, start):
    resolved = resolve(load.load("quickstart", fields), train=dataset(images=100))
    assert (resolved.steps, resolved.mixtraining.start_step) == (steps, start)


def test_what_is_set_in_epochs_and_shares_counts_over_a_recipes_steps():
    asked = load.load("quickstart").unlock()
    asked.update(steps=99)
    asked.mixtraining.start_step = 3
    asked.optimizer.drop_steps = (5,)
    fields = {"epochs": "8", "mixtraining.start_share": "0.5", "optimizer.drops": "0.25,"}
    resolved = resolve(
        load.override_all(asked, {**fields, "optimizer.schedule": "steps"}),
        train=dataset(images=100),
    )
    assert (resolved.steps, resolved.mixtraining.start_step) == (100, 50)
    assert tuple(resolved.optimizer.drop_steps) == (25,)
    assert load.load("cells:epochs=8").steps is None
    assert load.load("cells", {"epochs": "None"}).steps == 1000


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"auto_count": "0.3", "auto_agreement": "0.9"}, "set auto_count or auto_agreement"),
        ({"label_share": "0.3", "soft_background": "False"}, "soft labels need soft_background"),
        ({"label_share": "0.3", "auto_share": "True"}, "set label_share or auto_share"),
        ({"auto_share": "True"}, "auto_share needs rate_given_object=True"),
        (
            {"auto_share": "True", "rate_given_object": "True", "soft_background": "False"},
            "soft labels need soft_background",
        ),
        ({"must_agree": "True", "data.augment.flip": "0"}, "seen none with config.data.augment.fl"),
        ({"auto_agreement": ".9", "data.augment.flip": "0"}, "must_agree and auto_agreement ask"),
    ],
)
def test_switches_that_exclude_each_other_are_refused(fields, message):
    names = {name: name if "." in name else f"mixtraining.{name}" for name in fields}
    asked = load.load("cascade", {names[name]: text for name, text in fields.items()})
    with pytest.raises(UserError, match=message):
        resolve(asked, train=dataset())
    resolve(asked, classes=3)  # what detection needs is there all the same
    resolve(load.override_all(asked, {"mixtraining.enabled": "False"}), train=dataset())
