"""Runs an experiment: trains every arm of a suite for some seeds, and measures each one.

python tools/experiment.py --suite=cells --source=FOLDER --output=runs/cells --seeds=3

Trains one run at a time, in a process of its own, and keeps its figures in OUTPUT/results as soon
as it is measured; started again after any kill, it goes on with what is missing. Writes
OUTPUT/results.json, results.md and results.html. What the suites are: tools/experiments/suites.py;
what was found: docs/evidence.md.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # of a plain checkout

from ml_collections import ConfigDict

from mixtrain_jax import cli, process
from mixtrain_jax.config import agreement, load, saved, schema
from mixtrain_jax.config.compare import differences
from mixtrain_jax.errors import BAD_INPUT, UserError
from mixtrain_jax.runtime import processes, storage
from tools import judge_teacher
from tools.experiments import judging, labels, tables
from tools.experiments.labels import Files
from tools.experiments.suites import METHOD, SUITES, Arm, Suite

TRAIN = "mixtrain_jax.train"
AUDIT = "mixtrain_jax.audit"
FIRST = "runs/first"  # in the output
FOLDS = 2  # detectors that audit labels before they are repaired, each without half of the images
IMAGES = 300  # that the teacher is judged on


class Experiment:
    """One suite in one output folder.

    Attributes:
      suite: what is compared.
      source: folder of the suite's data, where it needs one.
      output: folder of everything that is written.
    """

    def __init__(self, suite: Suite, source: pathlib.Path | None, output: pathlib.Path):
        self.suite, self.source, self.output = suite, source, output
        self._labels: dict[int, Files] = {}
        self._judges: dict[int, judging.Judge] = {}

    def run(self, arm: Arm, seed: int) -> None:
        """Trains and measures an arm, unless its figures are there."""
        path = self.output / "results" / f"{arm.name}-{seed}.json"
        command = self._told(TRAIN, self.arguments(arm, seed))
        if path.exists():
            kept = json.loads(path.read_text())
            _check_same(path, kept["command"], command)
            if arm.labels == "repaired" and "audit" in kept:
                _check_same(path, kept["audit"], self._told(AUDIT, self.audit_arguments(seed)))
            elif arm.labels == "repaired":
                print(f"{path}: which calibration its audit had is not known", flush=True)
            return
        workdir = self.train(arm, seed)
        asked = load.load(self.suite.recipe_of(arm), self.flags(arm, seed))
        result = {
            "arm": arm.name,
            "seed": seed,
            "command": command,
            "after": arm.after,
            "code": agreement.code(),
            **self.measure(arm, asked, seed, workdir),
        }
        if arm.labels == "repaired":
            result["audit"] = self._told(AUDIT, self.audit_arguments(seed))
        path.parent.mkdir(parents=True, exist_ok=True)
        storage.write_json(storage.absolute(str(path)), result, indent=1)
        print(tables.line(result), flush=True)

    def train(self, arm: Arm, seed: int) -> pathlib.Path:
        """Trains an arm to its end, and before it what it starts from; returns its workdir."""
        workdir = self.workdir(arm, seed)
        if self.suite.first:
            self.first()
        if arm.labels == "repaired":
            self.repair(seed)
        self.begin(arm, seed, workdir)
        print(f"{arm.name}, seed {seed}: training in {workdir}", flush=True)
        arguments = [*self.arguments(arm, seed), f"--workdir={workdir}"]
        self._run(TRAIN, arguments, f"{arm.name}-{seed}")
        return workdir

    def workdir(self, arm: Arm, seed: int) -> pathlib.Path:
        """Where an arm of a seed is trained."""
        return self.output / "runs" / f"{arm.name}-{seed}"

    def arguments(self, arm: Arm, seed: int) -> list[str]:
        """Of the command that trains an arm, but for its workdir."""
        flags = self.flags(arm, seed)
        recipe = f"--config={self.suite.recipe_of(arm)}"
        return [recipe, *(f"--config.{name}={value}" for name, value in flags.items())]

    def _run(self, module: str, arguments: list[str], name: str) -> None:
        log = self.output / f"{name}.log"
        ended = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            cwd=pathlib.Path(__file__).resolve().parents[1],
            stdout=log.open("a"),
            stderr=subprocess.STDOUT,
            check=False,
        )
        if ended.returncode:
            raise UserError(f"{name}: python -m {module} ended with {ended.returncode}: {log}")

    def _told(self, module: str, arguments: list[str]) -> str:
        """A command as results keep it: without the folders of this machine."""
        command = " ".join(["python -m", module, *arguments])
        root = pathlib.Path(__file__).resolve().parents[1]
        folders = [(self.output, "OUTPUT"), (root, ".")]
        folders += [(self.source, "SOURCE")] if self.source else []
        for folder, name in sorted(folders, key=lambda pair: -len(str(pair[0]))):
            command = command.replace(f"{folder}/", f"{name}/")
        return command

    def measure(
        self, arm: Arm, asked: ConfigDict, seed: int, workdir: pathlib.Path
    ) -> dict[str, Any]:
        """Returns the figures of a finished run: of its own checkpoints, and of its teacher."""
        if seed not in self._judges:  # each compiles detection once
            self._judges[seed] = judging.Judge(asked, self.labels(seed))
        judge = self._judges[seed]
        every = asked.checkpoint.every  # others were saved where a run was asked to stop
        there = judging.steps_of(workdir)
        kept = [step for step in there if step % every == 0 or step == there[-1]]
        steps = [step for step in kept if step > self.suite.start_step]
        own = steps if arm.after else kept  # where plain training was at its best is a figure too
        curve = [
            {
                "step": step,
                **judge.score(workdir, "student", step),
                "AP of the average": judge.precision(workdir, "teacher", step, "val")["AP"],
            }
            for step in own
        ]
        figures: dict[str, Any] = {
            "student": curve[-1],
            "teacher": judge.score(workdir, "teacher", steps[-1]),
            "student, unseen images": judge.precision(workdir, "student", steps[-1], "unseen"),
            "curve": curve,
            "images_per_second": judging.speed(workdir),
        }
        if asked.mixtraining.enabled:
            clean = str(self.labels(seed).clean)
            figures["diagnosis"] = [
                {"step": step, **self._diagnose(asked, workdir, step, clean)} for step in steps
            ]
            figures["teacher_metrics"] = judging.teacher_metrics(workdir)
        return figures

    def flags(self, arm: Arm, seed: int) -> dict[str, str]:
        """Fields of the config, dotted, by which an arm of a seed differs from the recipe."""
        files = self.labels(seed)
        first = {"init_from": str(self.output / FIRST)} if self.suite.first else {}
        if self.suite.weights and self.source:
            first = {"init_from": str(self.source / self.suite.weights)}
        repaired = self.workdir(self._auditor(), seed) / "audit" / "corrected.json"
        labels = {"noisy": files.noisy, "clean": files.clean, "repaired": repaired}[arm.labels]
        return {
            **self.suite.settings,
            **first,
            "seed": str(seed),
            "data.train.annotations": str(labels),
            "data.train.images": str(files.images),
            "data.val.annotations": str(files.val),
            "data.val.images": str(files.val_images),
            f"{METHOD}.start_step": str(self.suite.start_step),
            **{f"{METHOD}.{name}": value for name, value in arm.flags.items()},
        }

    def first(self) -> None:
        """Trains the detector that all arms of all seeds start from, unless it is there.

        Raises:
          UserError: it is there, and was trained by other settings.
        """
        workdir, steps = self.output / FIRST, str(self.suite.first_steps)
        folder = self.output / "first"
        flags = {
            **self.suite.settings,
            "steps": steps,
            "data.train.annotations": str(folder / "objects.json"),
            "data.train.images": str(folder / "train"),
            "data.val.annotations": "",
            "data.val.images": "",
        }
        if (workdir / "checkpoints" / steps).exists():
            of_others = (METHOD, "data.augment.cutout")  # what plain training has no part of
            _check_trained_by(workdir, load.load("cells:plain", flags), of_others)
            return
        labels.objects(folder, train=self.suite.first)
        print(f"training the first weights in {workdir}", flush=True)
        own = [f"--config.{name}={value}" for name, value in flags.items()]
        self._run(TRAIN, ["--config=cells:plain", *own, f"--workdir={workdir}"], "first")

    def labels(self, seed: int) -> Files:
        """The label files of a seed, written when first asked for."""
        if seed not in self._labels:
            self._labels[seed] = self.suite.make(self.source, self.output / f"labels-{seed}", seed)
        return self._labels[seed]

    def _auditor(self) -> Arm:
        return self.suite.auditor._replace(name=f"audit_{self.suite.auditor.name}")

    def audit_arguments(self, seed: int) -> list[str]:
        """Of the command that repairs a seed's noisy labels, but for its workdir."""
        own = [f"--folds={FOLDS}", "--dump"]
        if self.suite.calibration:
            own.append(f"--calibration={self.suite.calibration}")
        return [*self.arguments(self.suite.auditor, seed), *own]

    def repair(self, seed: int) -> None:
        """Writes the noisy labels of a seed as the audit corrects them, by its own threshold.

        Its detectors are trained as the suite's `auditor` is, and each looks at the half of the
        images that it has not seen. They are not trained anew where only the calibration differs.
        """
        workdir = self.workdir(self._auditor(), seed)
        made_by = workdir / "audit" / "command.txt"
        command = self._told(AUDIT, self.audit_arguments(seed))
        if made_by.exists() and made_by.read_text() == command:
            return
        print(f"{self.suite.auditor.name}, seed {seed}: auditing in {workdir}", flush=True)
        self._run(AUDIT, [*self.audit_arguments(seed), f"--workdir={workdir}"], workdir.name)
        made_by.write_text(command)

    def begin(self, arm: Arm, seed: int, workdir: pathlib.Path) -> None:
        """Hands an arm the checkpoint of the arm that it is the same run as until then.

        Where only that one's figures are kept, not its checkpoints, it is trained anew.

        Raises:
          UserError: that arm was trained by other settings, or has not kept the checkpoint.
        """
        if not arm.after or (workdir / "checkpoints").exists():
            return
        first = next(each for each in self.suite.arms if each.name == arm.after)
        folder = self.workdir(first, seed)
        common = folder / "checkpoints" / str(self.suite.start_step)
        if not common.exists():
            self.train(first, seed)
        if not common.exists():
            raise UserError(
                f"{folder} has not kept the checkpoint of step {common.name}, with which "
                f"{arm.name} begins: delete the folder, and it is trained anew"
            )
        _check_trained_by(folder, load.load(self.suite.recipe_of(first), self.flags(first, seed)))
        part = workdir / "checkpoints.part"
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(common, part / common.name)
        part.rename(workdir / "checkpoints")

    def _diagnose(
        self, asked: ConfigDict, workdir: pathlib.Path, step: int, clean: str
    ) -> dict[str, Any]:
        path = str(workdir / "checkpoints" / str(step))
        tally = judge_teacher.judge(asked, path, clean, IMAGES)
        return tally.figures()


def _check_same(path: pathlib.Path, before: str, now: str) -> None:
    """Raises UserError if kept figures are of another command than would be run now."""
    differ = sorted(set(before.split()) ^ set(now.split()))
    if differ:
        raise UserError(
            f"{path} is of other settings ({', '.join(differ[:4])}): move it away, or choose "
            "another --output"
        )


def _check_trained_by(
    workdir: pathlib.Path, asked: ConfigDict, of_others: tuple[str, ...] = ()
) -> None:
    """Raises UserError if a run was trained by other settings.

    Folders may have other names; fields that the package no longer has, and `start_share` beside
    `start_step`, decide nothing.

    Args:
      workdir: of the run.
      asked: the settings.
      of_others: how the names of further fields begin that decide nothing.
    """
    before = saved.read(storage.absolute(str(workdir))).asked
    known = {name for name, field in schema.fields() if field.kind != schema.FREE}
    known.discard(f"{METHOD}.start_share")
    found = [
        each
        for each in differences(before, asked)
        if each.name in known
        and not each.name.endswith((".annotations", ".images", "_from"))
        and not each.name.startswith(of_others)
    ]
    if found:
        raise UserError(
            f"{workdir} was trained by other settings ({', '.join(map(str, found[:3]))}): delete "
            "it, or choose another --output"
        )


def main(flags: argparse.Namespace) -> int:
    """Runs what the flags name; returns the exit code."""
    if flags.suite not in SUITES:
        raise UserError(f"--suite={flags.suite}: choose from {', '.join(SUITES)}")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # a GPU is shared with arms
    process.prepare()
    processes.start(devices=False)  # they are an arm's, until it is measured
    suite = SUITES[flags.suite]
    names = flags.arms.split(",") if flags.arms else [arm.name for arm in suite.arms]
    arms = [arm for arm in suite.arms if arm.name in names]
    unknown = set(names) - {arm.name for arm in arms}
    if unknown:
        known = ", ".join(arm.name for arm in suite.arms)
        raise UserError(f"--arms={flags.arms}: {flags.suite} has {known}")
    source = pathlib.Path(flags.source).resolve() if flags.source else None
    experiment = Experiment(suite, source, pathlib.Path(flags.output).resolve())
    failed = 0
    for arm in arms:
        for seed in range(flags.first_seed, flags.first_seed + flags.seeds):
            try:
                experiment.run(arm, seed)
            except UserError as problem:
                print(problem, file=sys.stderr, flush=True)
                failed += 1
            tables.write(experiment.output, flags.suite)
    return BAD_INPUT if failed else 0


def parse() -> argparse.ArgumentParser:
    """Returns the program's flags."""
    parser = cli.parser(__doc__, takes_config=False)
    parser.add_argument("--suite", required=True, help=f"one of {', '.join(SUITES)}")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of the results")
    parser.add_argument("--source", metavar="FOLDER", help="of the data that a suite needs")
    parser.add_argument("--seeds", type=int, default=1, help="how many")
    parser.add_argument("--first_seed", type=int, default=0)
    parser.add_argument("--arms", help="names of some arms, with commas; default: all")
    return parser


if __name__ == "__main__":
    cli.run(main, parse())
