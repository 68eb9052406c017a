"""Runs an experiment: trains every arm of a suite for some seeds, and measures each one.

python tools/experiment.py --suite=cells --source=FOLDER --output=runs/cells --seeds=3

Trains one run at a time, in a process of its own, and keeps its figures in OUTPUT/results as soon
as it is measured; started again after any kill, it goes on with what is missing. Writes
OUTPUT/results.json, results.md and results.html. What the suites are: tools/experiments/suites.py;
what was found: docs/evidence.md.
"""

import argparse
import pathlib
import shutil
import subprocess
import sys
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # of a plain checkout

from ml_collections import ConfigDict

from mixtrain_jax import cli, process
from mixtrain_jax.config import load
from mixtrain_jax.errors import BAD_INPUT, UserError
from mixtrain_jax.runtime import parallel, storage
from tools import judge_teacher
from tools.experiments import judging, labels, tables
from tools.experiments.labels import Files
from tools.experiments.suites import METHOD, SUITES, Arm, Suite

TRAIN = "mixtrain_jax.train"
AUDIT = "mixtrain_jax.audit"
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
        if path.exists():
            return
        workdir, command = self.train(arm, seed)
        asked = load.load(self.suite.recipe_of(arm), self.flags(arm, seed))
        result = {
            "arm": arm.name,
            "seed": seed,
            "command": self._without_folders(" ".join(["python -m", TRAIN, *command])),
            "after": arm.after,
            **self.measure(arm, asked, seed, workdir),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        storage.write_json(storage.absolute(str(path)), result, indent=1)
        print(tables.line(result), flush=True)

    def train(self, arm: Arm, seed: int) -> tuple[pathlib.Path, list[str]]:
        """Trains an arm to its end; returns its workdir, and its command without the workdir."""
        workdir = self.output / "runs" / f"{arm.name}-{seed}"
        flags = self.flags(arm, seed)
        self.begin(arm, seed, workdir)
        command = [
            f"--config={self.suite.recipe_of(arm)}",
            *(f"--config.{name}={value}" for name, value in flags.items()),
        ]
        print(f"{arm.name}, seed {seed}: training in {workdir}", flush=True)
        self._run(TRAIN, [*command, f"--workdir={workdir}"], f"{arm.name}-{seed}")
        return workdir, command

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

    def _without_folders(self, command: str) -> str:
        for name, folder in (("OUTPUT", self.output), ("SOURCE", self.source)):
            command = command.replace(str(folder), name) if folder else command
        return command

    def measure(
        self, arm: Arm, asked: ConfigDict, seed: int, workdir: pathlib.Path
    ) -> dict[str, Any]:
        """Returns the figures of a finished run: of its own checkpoints, and of its teacher."""
        if seed not in self._judges:  # each compiles detection once
            self._judges[seed] = judging.Judge(asked, self.labels(seed))
        judge = self._judges[seed]
        kept = judging.steps_of(workdir)
        steps = [step for step in kept if step > self.suite.start_step]
        own = steps if arm.after else kept  # where plain training was at its best is a figure too
        curve = [{"step": step, **judge.score(workdir, "student", step)} for step in own]
        figures: dict[str, Any] = {
            "student": curve[-1],
            "teacher": judge.score(workdir, "teacher", steps[-1]),
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
        first = {"init_from": str(self.first())} if self.suite.first else {}
        chosen = {"noisy": files.noisy, "clean": files.clean}
        labels = self.repaired(seed) if arm.labels == "repaired" else chosen[arm.labels]
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

    def first(self) -> pathlib.Path:
        """The detector that all arms of all seeds start from, trained when first asked for."""
        workdir = self.output / "runs" / "first"
        steps = str(self.suite.first_steps)
        if not (workdir / "checkpoints" / steps).exists():
            file, images = labels.objects(self.output / "first", train=self.suite.first)
            print(f"training the first weights in {workdir}", flush=True)
            flags = {
                **self.suite.settings,
                "steps": steps,
                "data.train.annotations": str(file),
                "data.train.images": str(images),
                "data.val.annotations": "",
                "data.val.images": "",
            }
            own = [f"--config.{name}={value}" for name, value in flags.items()]
            self._run(TRAIN, ["--config=cells:plain", *own, f"--workdir={workdir}"], "first")
        return workdir

    def labels(self, seed: int) -> Files:
        """The label files of a seed, written when first asked for."""
        if seed not in self._labels:
            self._labels[seed] = self.suite.make(self.source, self.output / f"labels-{seed}", seed)
        return self._labels[seed]

    def repaired(self, seed: int) -> pathlib.Path:
        """The noisy labels of a seed as the audit corrects them, by its own threshold.

        Its detectors are trained as the suite's `auditor` is, and each looks at the half of the
        images that it has not seen. No clean label takes part.
        """
        auditor = self.suite.auditor
        name = f"audit_{auditor.name}-{seed}"
        workdir = self.output / "runs" / name
        path = workdir / "audit" / "corrected.json"
        if not path.exists():
            print(f"{auditor.name}, seed {seed}: auditing in {workdir}", flush=True)
            flags = [f"--config.{k}={v}" for k, v in self.flags(auditor, seed).items()]
            recipe = f"--config={self.suite.recipe_of(auditor)}"
            own = [f"--workdir={workdir}", f"--folds={FOLDS}", "--dump"]
            self._run(AUDIT, [recipe, *flags, *own], name)
        return path

    def begin(self, arm: Arm, seed: int, workdir: pathlib.Path) -> None:
        """Hands an arm the checkpoint of the arm that it is the same run as until then.

        Where only that one's figures are kept, not its checkpoints, it is trained anew.
        """
        if not arm.after or (workdir / "checkpoints").exists():
            return
        first = self.output / "runs" / f"{arm.after}-{seed}" / "checkpoints"
        common = first / str(self.suite.start_step)
        if not common.exists():
            self.train(next(each for each in self.suite.arms if each.name == arm.after), seed)
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


def main(flags: argparse.Namespace) -> int:
    """Runs what the flags name; returns the exit code."""
    if flags.suite not in SUITES:
        raise UserError(f"--suite={flags.suite}: choose from {', '.join(SUITES)}")
    process.prepare()
    parallel.start()
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
    parser = cli.parser(__doc__, config_required=False)
    parser.add_argument("--suite", required=True, help=f"one of {', '.join(SUITES)}")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of the results")
    parser.add_argument("--source", metavar="FOLDER", help="of the data that a suite needs")
    parser.add_argument("--seeds", type=int, default=1, help="how many")
    parser.add_argument("--first_seed", type=int, default=0)
    parser.add_argument("--arms", help="names of some arms, with commas; default: all")
    return parser


if __name__ == "__main__":
    cli.run(main, parse())
