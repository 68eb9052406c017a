"""A config of seconds for tests of the commands: a tiny detector on generated images.

As a config file, `--config=tests/tiny.py:FOLDER` trains it with MixTraining on the images that
`make_shapes` wrote to a folder.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))  # when it is read as a config file

from mixtrain_jax.config import load as configs
from tests.mixtraining import small

STEPS = 6


def get_config(folder: str, **changes):
    """The small model on the images in a folder; double underscores in names are dots."""
    config = small.config()
    config.model.num_classes = None
    config.batch_size, config.steps = 4, STEPS
    config.eval.batch_size = 4
    config.data.train.update(scale=(64, 48, 64), buckets=((64, 64),))
    config.data.val.update(scale=(64, 64), buckets=((64, 64),))
    for split in ("train", "val"):
        config.data[split].annotations = f"{folder}/annotations/{split}.json"
        config.data[split].images = f"{folder}/{split}"
    config.checkpoint.every = 3
    config.log.update(every=2, pictures_every=STEPS)
    config.optimizer.warmup_steps = 2
    for name, value in changes.items():
        configs.override(config, name.replace("__", "."), str(value))
    return config
