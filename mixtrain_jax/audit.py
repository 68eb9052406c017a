"""Tells which human labels are probably wrong: shown, ranked, corrected.

python -m mixtrain_jax.audit --workdir=runs/mine

A run's teacher looks at the labels it was trained on (--split=val: at the others), as it is and
mirrored, with the student beside it. Boxes of the wrong class, badly drawn, missing, spurious and
doubled ones come out with a score, an estimate of how probable it is that the finding is right.
--folds=2 first trains two detectors, each without half of the images, and lets each look at the
half it has not seen.

Writes to --output (default: audit in the workdir) audit.json, corrected.json (COCO, with all
findings above --threshold applied) and audit.html, a page to accept and reject them one by one.
--apply=decisions.json, which the page exports, writes accepted.json with the accepted ones. Labels
that came as VOC or YOLO are written as such too, in the folders `corrected` and `accepted`. The
labels themselves are never written over.
"""

import argparse

from mixtrain_jax import cli
from mixtrain_jax.errors import STOPPED, UserError, memory_in_one_line


def main(flags: argparse.Namespace) -> int:
    """Audits what the flags name; returns the exit code."""
    if not 0 <= flags.threshold <= 1:
        raise UserError(f"--threshold={flags.threshold}: choose from 0 to 1")

    from etils import epath

    from mixtrain_jax import process
    from mixtrain_jax.data.sources.load import load_dataset
    from mixtrain_jax.evaluation import detect
    from mixtrain_jax.evaluation.audit import FOLDERS
    from mixtrain_jax.evaluation.corrected import apply_decisions
    from mixtrain_jax.runtime import processes, storage
    from mixtrain_jax.training.folds import audit_split

    process.prepare(flags.config, training=True)
    processes.start(devices=not flags.apply)
    workdir = epath.Path(flags.workdir)
    output = epath.Path(flags.output or workdir / FOLDERS[flags.split])
    with processes.abort_all_on_error(), memory_in_one_line(detect.LESS_MEMORY):
        if flags.apply:
            data = flags.config.data
            dataset = load_dataset(data, flags.split)
            decisions = epath.Path(flags.apply)
            count = apply_decisions(dataset, data, flags.split, output, decisions)
            print(f"wrote {output / 'accepted.json'}: {count} findings applied")
            return 0
        contents = audit_split(
            flags.config,
            str(workdir),
            workdir,
            output,
            split=flags.split,
            folds=flags.folds,
            threshold=flags.threshold,
            dump=flags.dump,
            calibration=flags.calibration,
        )
    if contents is None:
        return STOPPED
    page = "audit.html, " if storage.exists(output / "audit.html") else ""
    print(
        f"wrote {page}audit.json and corrected.json to {output}: {contents['applied']} findings "
        f"with a score of at least {flags.threshold} among {contents['data']['human_boxes']} human "
        "boxes"
    )
    return 0


def parse() -> argparse.ArgumentParser:
    """Returns the command's flags."""
    parser = cli.parser(__doc__)
    parser.add_argument("--workdir", required=True, help="a run's directory")
    parser.add_argument("--split", default="train", choices=("train", "val"))
    parser.add_argument(
        "--output",
        help="directory for the audit; default: audit in the workdir, audit_val for --split=val",
    )
    parser.add_argument(
        "--folds", type=int, default=0, metavar="K",
        help="train K detectors first, each without a part of the images, and audit by those that "
        "have not seen them; started again, it resumes",
    )  # fmt: skip
    parser.add_argument(
        "--dump", action="store_true",
        help="write looks.npz, too: all that the detectors see, for tools/benchmark_audit.py",
    )  # fmt: skip
    parser.add_argument(
        "--calibration", metavar="FILE", default="",
        help="what findings are scored by: own (errors planted into these very labels, which are "
        "looked at too), what tools/benchmark_audit.py --fit wrote, or own,FILE (missing and "
        "doubled boxes by FILE); default: the package's",
    )  # fmt: skip
    parser.add_argument(
        "--threshold", type=float, default=0.5, help="least score applied in corrected.json"
    )
    parser.add_argument("--apply", metavar="FILE", help="decisions.json that the page exported")
    return parser


def command() -> None:
    """The command, as a console script runs it."""
    cli.run(main, parse())


if __name__ == "__main__":
    command()
