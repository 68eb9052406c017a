"""Measures how fast everything is, on whatever JAX finds here, and prints tables in Markdown.

python tools/benchmark.py                                  # all that makes sense on this machine
python tools/benchmark.py --cases=cascade_mixed,ops --json=found.json
python tools/benchmark.py --cases=cascade_mixed --batch=32 --profile=traces

Cases: swin, cascade, faster_r50 (forward and inference); cascade_plain, cascade_mixed,
faster_r50_plain, faster_r50_mixed (training steps); ops (each operation alone); input, padding,
scoring, start, annotations (the host's work; these need TensorFlow, and input OpenCV); torch
(torchvision, where it is installed). Only when asked for: objects365 (annotations of that size;
8 GB of disk). Each runs in a process of its own. On CPU models compute in float32 at the sizes of
docs/benchmarks.md; on accelerators in bfloat16 at 800x1344, and where no --batch is given training
takes the largest of a few batches that fits.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # of a plain checkout

import jax

from mixtrain_jax.errors import BAD_INPUT, UserError
from mixtrain_jax.runtime import memory, processes, storage
from tools.benchmarks import measure, models, ops

HOST = ("input", "padding", "scoring", "start", "annotations")
ALL = (*models.CASES, "ops", *HOST, "torch")
ASKED = ("objects365",)  # large, and not run otherwise
BATCHES = (128, 96, 64, 48, 32, 24, 16, 8, 4, 2)  # tried on accelerators, until one fits

# Of each kind of table: head, key of a row, format.
COLUMNS = {
    "models": [
        ("size", "size", ""),
        ("batch", "batch", ""),
        ("GFLOP", "gflop", ".1f"),
        ("counted", "counted", ".1f"),
        ("s", "median", ".2f"),
        ("least", "low", ".2f"),
        ("most", "high", ".2f"),
        ("runs", "runs", ""),
        ("GB", "peak_gb", ".1f"),
        ("matmul GFLOP/s", "matmul", ".0f"),
        ("efficiency", "efficiency", ".2f"),
        ("goal", "goal", ".2f"),
        ("PyTorch's", "torch_efficiency", ".2f"),
        ("PyTorch's GB", "torch_gb", ".1f"),
        ("pictures/s", "per_second", ".2f"),
        ("first call s", "first", ".0f"),
    ],
    "milliseconds": [
        ("ms", "median_ms", ".2f"),
        ("least", "low_ms", ".2f"),
        ("most", "high_ms", ".2f"),
        ("runs", "runs", ""),
    ],
    "seconds": [("s", "median", ".1f"), ("GB more", "grown_gb", ".2f")],
    "input": [
        ("images/s", "per_second", ".1f"),
        ("a core", "per_core_second", ".1f"),
        ("times OpenCV's a core", "ratio", ".2f"),
        ("runs", "runs", ""),
    ],
    "padding": [
        ("padded / image area", "waste", ".3f"),
        ("shapes", "shapes", ""),
        ("", "buckets", ""),
    ],
    "ratio": [("times plain", "ratio", ".2f")],
}


def main() -> int:
    """Runs the chosen cases one after the other; returns the exit code."""
    flags = _parser().parse_args()
    if flags.run:
        storage.write_json(flags.json, run(flags.run, flags))
        return 0
    here = in_own_process("machine", flags)
    cases = flags.cases.split(",") if flags.cases else default_cases(here["accelerator"])
    if strangers := [case for case in cases if case not in ALL + ASKED]:
        raise UserError(f"no case {strangers[0]}; choose from {', '.join(ALL + ASKED)}")
    print(here["machine"], flush=True)
    tables: dict[str, list[measure.Row]] = {}
    failed: list[str] = []
    for case in cases:
        search = here["accelerator"] and not flags.batch and case in models.CASES
        search = search and models.CASES[case].trains
        print(f"{case} ...", file=sys.stderr, flush=True)
        try:
            found = largest(case, flags) if search else in_own_process(case, flags)
        except (UserError, MemoryError) as problem:
            what = problem if isinstance(problem, UserError) else f"case {case} needs more memory"
            print(f"error: {what}", file=sys.stderr, flush=True)
            failed.append(case)
            found = {}
        for kind, rows in found.items():
            tables.setdefault(kind, []).extend(rows)
        tables |= ratio(tables.get("models", []))
        if flags.json:  # at once: a run that is killed keeps what it has
            kept = here | {"tables": tables, "failed": failed}
            storage.write_json(flags.json, kept, indent=1)
    for kind, rows in tables.items():
        print("\n" + markdown(rows, COLUMNS[kind]), flush=True)
    return BAD_INPUT if failed else 0


def default_cases(accelerator: bool) -> list[str]:
    """Everything that this machine has what it takes for."""
    needs = {"input": ("tensorflow", "cv2"), "start": ("tensorflow",), "padding": ("tensorflow",)}
    needs |= {"annotations": ("tensorflow",)}
    needs |= {"torch": ("torchvision",), "scoring": ("pycocotools", "faster_coco_eval")}
    found = [case for case in ALL if all(importlib.util.find_spec(n) for n in needs.get(case, ()))]
    return found if accelerator else [case for case in found if case != "torch"]


def in_own_process(case: str, flags: argparse.Namespace, batch: int = 0) -> dict[str, Any]:
    """Runs a case in a child, which has the device and its memory to itself.

    Raises:
      UserError: it failed, and has said why.
      MemoryError: there was not enough memory for the batch that was asked for.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer = pathlib.Path(folder) / "rows.json"
        command = [sys.executable, __file__, f"--run={case}", f"--json={answer}"]
        command += [f"--batch={batch or flags.batch}", f"--seconds={flags.seconds}"]
        command += [f"--profile={flags.profile}"] if flags.profile else []
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode == 0:
            return json.loads(answer.read_text())
    if "RESOURCE_EXHAUSTED" in done.stderr:
        raise MemoryError(done.stderr)
    print(done.stderr, file=sys.stderr)
    raise UserError(f"case {case} failed, as said above")


def largest(case: str, flags: argparse.Namespace) -> dict[str, Any]:
    """Runs a case with the largest of BATCHES that fits into memory."""
    for batch in BATCHES:
        with contextlib.suppress(MemoryError):
            return in_own_process(case, flags, batch)
    raise MemoryError


def run(case: str, flags: argparse.Namespace) -> dict[str, Any]:
    """Runs a case in this process; returns rows by the kind of table they stand in."""
    if processes.cpu_only():
        memory.prepare()  # as training does
    if case == "machine":
        return {"machine": machine(), "accelerator": measure.accelerator()}
    if case in models.CASES:
        rows = models.run(case, flags.batch, flags.seconds, flags.profile and flags.profile / case)
        for row in rows:
            row["per_second"] = row["batch"] / row["median"]
        return {"models": rows}
    if case == "ops":
        return {"milliseconds": _in_milliseconds(ops.run(flags.seconds / 10))}
    if case == "torch":
        from tools.benchmarks import against_torch

        step, *rows = against_torch.run(flags.batch, flags.seconds)
        step["per_second"] = step["batch"] / step["median"]
        return {"models": [step], "milliseconds": _in_milliseconds(rows)}
    if case in ("annotations", "objects365"):
        from tools.benchmarks import annotations

        if case == "objects365":
            return {"seconds": annotations.run(1_700_000, 26_000_000)}
        return {"seconds": annotations.run(100_000, 1_500_000) + annotations.run_plan(50_000)}
    from tools.benchmarks import host

    kind = {"input": "input", "padding": "padding"}.get(case, "seconds")
    return {kind: getattr(host, f"run_{case}")(flags.seconds)}


def _in_milliseconds(rows: list[measure.Row]) -> list[measure.Row]:
    return [row | {f"{k}_ms": 1e3 * row[k] for k in ("median", "low", "high")} for row in rows]


def ratio(rows: list[measure.Row]) -> dict[str, list[measure.Row]]:
    """MixTraining's step over the plain one, where both were measured, for each student picture."""
    each = {row["case"]: row["median"] / row["batch"] for row in rows}
    found = []
    for name in ("cascade", "faster_r50"):
        plain, mixed = (models.CASES[f"{name}_{kind}"].title for kind in ("plain", "mixed"))
        if {plain, mixed} <= each.keys():
            found.append({"case": mixed, "ratio": each[mixed] / each[plain]})
    return {"ratio": found} if found else {}


def markdown(rows: list[measure.Row], columns: list[tuple[str, str, str]]) -> str:
    """A table of those columns that any row has something for."""
    columns = [c for c in columns if any(row.get(c[1]) is not None for row in rows)]
    lines = ["| | " + " | ".join(head for head, _, _ in columns) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for row in rows:
        cells = (
            "" if row.get(key) is None else format(row[key], style) for _, key, style in columns
        )
        lines.append(f"| {row['case']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def machine() -> str:
    """One line on the hardware and the software."""
    name = platform.processor() or platform.machine()
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models_named = [s for s in cpuinfo.read_text().splitlines() if s.startswith("model name")]
        name = models_named[0].partition(":")[2].strip() if models_named else name
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    device = jax.devices()[0].device_kind
    where = f"; {jax.device_count()} x {device}" if measure.accelerator() else ""
    return f"{name}, {os.cpu_count()} cores, {memory:.0f} GB{where}; JAX {jax.__version__}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", help="names with commas in between; all that make sense here")
    parser.add_argument("--json", metavar="FILE", help="file to write the figures to")
    parser.add_argument(
        "--profile", type=pathlib.Path, help="folder for a trace of one call of each model"
    )
    parser.add_argument("--batch", type=int, default=0, help="pictures a call, of models and torch")
    parser.add_argument("--seconds", type=float, default=20, help="of timed calls for a case")
    parser.add_argument("--run", help=argparse.SUPPRESS)  # a case, in this process
    return parser


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(BAD_INPUT)
