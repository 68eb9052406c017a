"""A recipe for a data set and a machine: facts in, the text of a config file out.

Each line is a field with its value and the reason for it. What is chosen was measured where a
reason says so; the rest follows the paper's recipes, scaled to the data.
"""

import pathlib
import shlex
import textwrap
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from mixtrain_jax.config.resolve import check_batch_size, parts_a_device
from mixtrain_jax.inspection import on_accelerator, on_cpu
from mixtrain_jax.inspection.facts import Facts
from mixtrain_jax.inspection.plans import Line, Plan, cpu_devices, least_batch
from mixtrain_jax.inspection.weights import PretrainedWeights
from mixtrain_jax.runtime.machine import Machine

LINE = 100


def text(plan: Plan, facts: Facts, machine: Machine, path: str) -> str:
    """Writes the recipe: Python with a function `get_config`.

    Args:
      plan: what it decides.
      facts: of the data set, as it was chosen for.
      machine: likewise.
      path: of the file, for the command in its docstring.
    """
    heights, widths = facts.sizes[:, 0], facts.sizes[:, 1]
    parts = [
        f'"""A detector of {_listed(facts.classes)}, for {_named(machine)}.\n',
        train_command(machine, path, plan.config()),
        "",
        *_wrapped(
            f"Chosen by mixtrain_jax.check for {facts.images} images to train on, "
            f"{_range(widths)} pixels wide and {_range(heights)} high, and {facts.val_images} to "
            "evaluate on. Change what you like."
        ),
        '"""\n',
        "from ml_collections import ConfigDict\n",
        "from mixtrain_jax.config import recipes\n\n",
        "def get_config(argument: str | None = None) -> ConfigDict:",
        "    config = recipes.base()",
    ]
    for title, lines in plan.groups.items():
        parts += ["", f"    # {title}"]
        for line in lines:
            parts += _commented(line)
    return "\n".join([*parts, "", "    return recipes.variants(config, argument)", ""])


def check_batch(machine: Machine, asked: Mapping[str, Any]) -> None:
    """Raises UserError for a batch that the devices of the machine cannot share."""
    if "batch_size" in asked:
        batch = asked["batch_size"]
        cpu = machine.platform == "cpu"
        least = least_batch(asked)
        devices = cpu_devices(machine, batch, least) if cpu else machine.devices
        check_batch_size("batch_size", batch, devices, least)


def train_command(machine: Machine, path: str, config: Any) -> str:
    """The command that trains by a recipe, on a CPU with the devices that share its batch."""
    name = pathlib.PurePath(path).stem
    least = parts_a_device(config.mixtraining.enabled, config.accumulate)
    count = cpu_devices(machine, config.batch_size, least)
    devices = f"JAX_NUM_CPU_DEVICES={count} " if machine.platform == "cpu" and count > 1 else ""
    config, workdir = map(shlex.quote, (f"--config={path}", f"--workdir=runs/{name}"))
    return f"{devices}python -m mixtrain_jax.train {config} {workdir}"


def choose(
    facts: Facts,
    machine: Machine,
    weights: PretrainedWeights | None,
    asked: Mapping[str, Any] = MappingProxyType({}),
) -> Plan:
    """Chooses every value of a recipe: what is asked for wins, and the rest suits it.

    Args:
      facts: of the data set.
      machine: that is to train.
      weights: pretrained ones to start from; None: random weights.
      asked: fields that were set on the command line, which win; length and rate are for an
        asked batch.
    """
    by_machine = on_cpu if machine.platform == "cpu" else on_accelerator
    plan = by_machine.choose(facts, machine, weights, asked)
    return plan.with_asked(asked)


def _range(values: np.ndarray) -> str:
    least, most = int(values.min()), int(values.max())
    return str(least) if least == most else f"{least} to {most}"


def _named(machine: Machine) -> str:
    return f"a CPU of {machine.cores} cores" if machine.platform == "cpu" else str(machine)


def _listed(classes: tuple[str, ...]) -> str:
    shown = ", ".join(name.replace("\\", "").replace('"', "'") for name in classes[:5])
    rest = f" and {len(classes) - 5} more classes" if len(classes) > 5 else ""
    return " ".join(f"{shown}{rest}".split())[:70]


def _commented(line: Line) -> list[str]:
    code = f"    {line.code()}"
    if not line.reason:
        return [code]
    if len(code) + len(line.reason) + 4 <= LINE:
        return [f"{code}  # {line.reason}"]
    return [*(f"    # {part}" for part in _wrapped(line.reason, LINE - 6)), code]


def _wrapped(words: str, width: int = LINE) -> list[str]:
    return textwrap.wrap(words, width)
