"""What a command changes in its process, all in one place; importing the package changes nothing.

On a machine that computes on the CPU: how memory is handed out, in which order XLA computes, and on
how many devices. Everywhere: object stores are reached by fsspec, TensorFlow leaves accelerators
alone and does not greet, orbax reports an error once, log messages below a warning and Pillow's
warnings are not shown, and Pillow opens images of up to half a billion pixels. In a process that
is somebody else's program (`share`) object stores, TensorFlow and the largest image are prepared
alone.
"""

import contextlib
import json
import logging as logging_module
import os
import warnings
from collections.abc import Mapping
from typing import Any

MOST_PIXELS = 1 << 29  # of an image
# Listings are asked for anew, as other processes write too; no answer is awaited for ever.
_GCSFS = {"use_listings_cache": False, "requests_timeout": 60}

_NARROW = 64  # a ResNet with fewer channels has convolutions that keep one core busy


def prepare(config: Any = None, training: bool = False, alone: bool = True) -> None:
    """Prepares this process for training or detection; call it before JAX's devices start.

    Args:
      config: the whole config as it was asked for; without it there is one CPU device.
      training: True: for training; False: for detection alone.
      alone: whether no other process takes part in the run.

    Raises:
      UserError: TensorFlow has GPUs in this process already.
    """
    from absl import logging

    prepare_storage()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.set_verbosity(logging.WARNING)

    from PIL import Image

    from mixtrain_jax.data.tensorflow import keep_off_accelerators
    from mixtrain_jax.errors import UserError
    from mixtrain_jax.runtime import machine, memory, orbax_files, processes

    if processes.cpu_only():
        memory.prepare()
        devices = cpu_devices(config, training, machine.cores(), os.environ)
        if alone and devices > 1:
            import jax

            with contextlib.suppress(RuntimeError):  # JAX computed before: its devices stay
                jax.config.update("jax_num_cpu_devices", devices)
    Image.MAX_IMAGE_PIXELS = MOST_PIXELS
    # Of images that it reads all the same: odd EXIF, transparency in a palette.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
    orbax_files.quiet_orbax()
    try:
        keep_off_accelerators()
    except RuntimeError as error:
        raise UserError(
            "TensorFlow has taken the GPUs of this process, which JAX needs: train in a fresh "
            "process, or hide them at its start by tf.config.set_visible_devices([], 'GPU')"
        ) from error


def prepare_storage() -> None:
    """Has all paths of object stores go through fsspec; call it before the first is looked at."""
    os.environ.setdefault("EPATH_USE_TF", "false")
    os.environ.setdefault("FSSPEC_GCS", json.dumps(_GCSFS))
    # gcsfs would ask before each operation whether the bucket has real folders, and warn each time
    # that it may not know; a yes is all that it keeps. Nothing here needs the answer.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    # They print what they raise too, or tell of each place that holds no credentials.
    for name in ("gcsfs", "google.auth"):
        logging_module.getLogger(name).setLevel(logging_module.CRITICAL)


def share() -> None:
    """Prepares a process for the Python API: object stores, and accelerators for JAX alone.

    Where TensorFlow was used before, its devices stay as they are. Images may be as large as in the
    commands.
    """
    from PIL import Image

    from mixtrain_jax.data.tensorflow import keep_off_accelerators

    prepare_storage()
    with contextlib.suppress(RuntimeError):
        keep_off_accelerators()
    if Image.MAX_IMAGE_PIXELS is not None:
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, MOST_PIXELS)


def cpu_devices(config: Any, training: bool, cores: int, environment: Mapping[str, str]) -> int:
    """How many devices the CPU is to be: two for a small model, if its batches can be shared.

    What is computed is the same but for the order of sums. JAX_NUM_CPU_DEVICES, or XLA_FLAGS with a
    number of devices, decide instead where they are set; then and in all other cases it is one.
    """
    from mixtrain_jax.config.resolve import parts_a_device

    flags = environment.get("XLA_FLAGS", "")
    given = "JAX_NUM_CPU_DEVICES" in environment or "host_platform_device_count" in flags
    if config is None or given or cores < 2 or int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        return 1
    backbone = config.model.backbone
    small = backbone.name == "resnet" and backbone.base_channels < _NARROW
    parts = parts_a_device(config.mixtraining.enabled, config.accumulate)
    shared = config.eval.batch_size is None or config.eval.batch_size % 2 == 0
    shared &= not training or config.batch_size % (2 * parts) == 0
    return 2 if small and shared else 1
