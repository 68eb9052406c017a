"""What a compiled program asks of a card at least: kernels, bytes, FLOP, waits, a bound on time.

Rules. Every scheduled instruction that is no mere name for data is a kernel; a fusion is one. Its
bytes are those of its operands and results, each once. Its FLOP are those of the matrix products
and convolutions in it, a multiply-add as two. It takes at least the longer of FLOP over the card's
peak and bytes over its bandwidth, and `LAUNCH` seconds besides. What a loop holds counts as often
as it runs; where the compiler does not know that, as often as `rounds` says, and each round makes
the host wait, as does a last look that ends the loop. So do a branch taken by data and a copy to
the host. Numbers without kernels (what the host does between them, copies of batches to the card)
are left out: it is a bound, not a forecast.
"""

import collections
import dataclasses
import json
import math
import re
from typing import Any

from tools.compiled.hlo import Instruction, Program, Shape

LAUNCH = 3e-6  # seconds a kernel takes besides its work
_NAMES = {  # instructions that do nothing when the program runs
    *("parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "domain"),
    *("partition-id", "replica-id", "opt-barrier", "add-dependency", "get-dimension-size"),
}
_CONTROL = {"while", "conditional", "call", "async-start"}
_PRODUCTS = {"dot", "convolution", "custom-call"}


@dataclasses.dataclass(frozen=True)
class Peak:
    """What a card can do at most.

    Attributes:
      flops: FLOP a second of matrix products in bfloat16.
      slower: the same in float32, as the compiler rounds them by default.
      bandwidth: bytes a second of its memory.
    """

    flops: float
    slower: float
    bandwidth: float


@dataclasses.dataclass(frozen=True)
class Kernel:
    """An instruction that runs, and how often.

    Attributes:
      kind: its opcode; what is called of a custom call; "matrix product" or "convolution" where it
        holds one.
      place: a name of the source.
      times: how often it runs.
      size: bytes of one run.
      flop: of one run.
      dtype: of its products; empty where it has none.
    """

    kind: str
    place: str
    times: float
    size: float
    flop: float
    dtype: str

    def seconds(self, peak: Peak) -> float:
        """The least that all runs take."""
        rate = peak.slower if self.dtype in ("f32", "f64") else peak.flops
        return self.times * (LAUNCH + max(self.flop / rate, self.size / peak.bandwidth))


@dataclasses.dataclass
class Found:
    """All kernels of a program, and what makes the host wait."""

    kernels: list[Kernel] = dataclasses.field(default_factory=list)
    loops: list[tuple[str, float]] = dataclasses.field(default_factory=list)
    branches: float = 0
    copies_to_host: float = 0

    @property
    def waits(self) -> float:
        """How often the host waits for the device."""
        return sum(waits for _, waits in self.loops) + self.branches + self.copies_to_host


def look(program: Program, rounds: dict[str, float]) -> Found:
    """Walks through a program as it runs.

    Args:
      program: as `hlo.parse` reads it.
      rounds: by pattern (a regular expression on the place), how often loops of unknown length run;
        the first that matches counts, and without any a loop runs once.
    """
    found = Found()
    _walk(program, program.entry, 1.0, rounds, found)
    return found


def _walk(
    program: Program, name: str, times: float, rounds: dict[str, float], found: Found
) -> None:
    for each in program.computations.get(name, ()):
        if each.opcode in _NAMES or each.opcode.endswith(("-done", "-update")):
            continue
        if each.opcode not in _CONTROL:
            found.kernels.append(_kernel(program, name, each, times))
            found.copies_to_host += times * _to_host(each)
            continue
        runs = times
        if each.opcode == "while":
            runs = times * (each.trips if each.trips is not None else _rounds(each, rounds))
            if each.trips is None:
                found.loops.append((each.place, runs + times))
        if each.opcode == "conditional":
            found.branches += times
        for role, called in each.calls.items():
            for other in called if role != "condition" else ():
                _walk(program, other, runs, rounds, found)


def _rounds(loop: Instruction, rounds: dict[str, float]) -> float:
    return next((count for text, count in rounds.items() if re.search(text, loop.place)), 1.0)


def _to_host(each: Instruction) -> bool:
    """Whether an instruction copies to the host, whose memory XLA calls space 5."""
    return each.attribute("custom_call_target") == "MoveToHost" or each.opcode == "outfeed"


def _kernel(program: Program, computation: str, each: Instruction, times: float) -> Kernel:
    products = [
        (other, inner)
        for other, inner in ((computation, each), *program.inside(each))
        if inner.opcode in _PRODUCTS
    ]
    flop, kind, dtype = 0.0, each.attribute("custom_call_target") or each.opcode, ""
    for other, inner in products:
        operands = program.operand_shapes(other, inner)
        one, what = _flop(inner, operands)
        if one:
            flop, kind, dtype = flop + one, what, operands[0].dtype
    size = sum(shape.size for shape in (*program.operand_shapes(computation, each), *each.shapes))
    return Kernel(kind, place(each.place), times, size, flop, dtype)


def _flop(each: Instruction, operands: list[Shape]) -> tuple[float, str]:
    """FLOP of a matrix product or a convolution, and which it is; 0 of anything else."""
    target = each.attribute("custom_call_target")
    if each.opcode == "dot" or (target.startswith("__cublas$") and "Solve" not in target):
        contracted = re.search(r"lhs_contracting_dim(?:ension)?s\"?[=:][{\[]([\d\",]*)", each.rest)
        axes = re.findall(r"\d+", contracted[1]) if contracted else []
        inner = math.prod(operands[0].sides[int(axis)] for axis in axes)
        return 2.0 * each.shapes[0].count * inner, "matrix product"
    if each.opcode != "convolution" and not target.startswith("__cudnn$conv"):
        return 0.0, ""
    # Numbers of the output, times the numbers of a kernel for one of its features.
    output, kernel = each.shapes[0], operands[1]
    if "BackwardFilter" in target:
        output, kernel = operands[1], each.shapes[0]
    elif "BackwardInput" in target:
        output = operands[0]
    labels = re.search(r"dim_labels=\w+_(\w+)->", each.rest)
    features = kernel.sides[labels[1].index("o")] if labels else 1
    inserted = re.search(r"lhs_dilate=([\dx]+)", each.rest)  # zeros that are not multiplied
    zeros = math.prod(int(side) for side in inserted[1].split("x")) if inserted else 1
    return 2.0 * output.count * kernel.count / features / zeros, "convolution"


def place(name: str) -> str:
    """The modules that an instruction belongs to, three at most, and whether it is a gradient.

    JAX writes jit(f)/transpose(jvp(Detector.losses))/roi_head.losses/vmap()/add.
    """
    gradient = "transpose(" in name
    parts: list[str] = []
    for part in name.split("/")[1:-1]:
        inner = re.sub(r"^(?:\w+\()*|\)*$", "", part)
        if re.fullmatch(r"(jit|vmap|pjit)\(.*\)*", part) or not inner:
            continue
        if inner in ("while", "body", "cond", "closed_call") or inner.startswith("branch_"):
            continue
        if "<locals>" not in inner and (not parts or parts[-1] != inner):
            parts.append(inner)
    return "/".join(parts[:3]) + (" (gradient)" if gradient and parts else "")


def summary(found: Found, peak: Peak, images: int) -> dict[str, Any]:
    """The numbers of a program, as plain values for a table or a file.

    Args:
      found: as `look` found it.
      peak: of the card.
      images: that the program sees in a run.
    """
    seconds = sum(kernel.seconds(peak) for kernel in found.kernels)
    flop = sum(kernel.times * kernel.flop for kernel in found.kernels)
    kinds: dict[str, list[float]] = collections.defaultdict(lambda: [0.0, 0.0, 0.0, 0.0])
    places: dict[str, float] = collections.defaultdict(float)
    for kernel in found.kernels:
        numbers = kernel.times, kernel.times * kernel.size, kernel.times * kernel.flop
        for index, number in enumerate((*numbers, kernel.seconds(peak))):
            kinds[kernel.kind][index] += number
        places[kernel.place] += kernel.seconds(peak)
    rows = {
        kind: dict(zip(("runs", "bytes", "flop", "seconds"), numbers, strict=True))
        for kind, numbers in sorted(kinds.items(), key=lambda pair: -pair[1][3])
    }
    return {
        "kernels": len(found.kernels),
        "runs": sum(kernel.times for kernel in found.kernels),
        "copies": sum(k.times for k in found.kernels if k.kind.startswith(("copy", "transpose"))),
        "bytes": sum(kernel.times * kernel.size for kernel in found.kernels),
        "flop": flop,
        "unknown_loops": len(found.loops),
        "waits": found.waits,
        "loops": [{"place": name, "waits": waits} for name, waits in found.loops],
        "products": dict(
            collections.Counter(f"{k.kind} in {k.dtype}" for k in found.kernels if k.flop)
        ),
        "seconds": seconds,
        "flop_seconds": flop / peak.flops,
        "times_flop": seconds / (flop / peak.flops) if flop else None,
        "images_per_second": images / seconds,
        "mfu": flop / peak.flops / seconds,
        "kinds": rows,
        "places": dict(sorted(places.items(), key=lambda pair: -pair[1])[:10]),
    }


def table(numbers: dict[str, Any]) -> str:
    """The summary as lines for people."""
    kernels, runs, copies, waits = (numbers[k] for k in ("kernels", "runs", "copies", "waits"))
    least, share = 1e3 * numbers["seconds"], numbers["times_flop"] or 0
    lines = [
        f"  {kernels} kernels run {runs:.0f} times, {copies:.0f} of these are copies; "
        f"{numbers['bytes'] / 1e9:.1f} GB, {numbers['flop'] / 1e12:.2f} TFLOP",
        f"  {numbers['unknown_loops']} loops of unknown length; the host waits {waits:.0f} times",
        f"  products: {json.dumps(numbers['products'])[1:-1]}",
        f"  at least {least:.1f} ms, {share:.2f} times the FLOP alone: at most "
        f"{numbers['images_per_second']:.0f} images/s, MFU {numbers['mfu']:.0%}",
    ]
    lines += [f"  {1e3 * value:8.2f} ms  {name}" for name, value in numbers["places"].items()]
    return "\n".join(lines)
