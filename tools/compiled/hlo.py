"""Reads the text of a compiled XLA program: its computations, and what each instruction is.

The text is what `compiled.as_text()` gives. Only what a reckoning needs is kept: shapes, operands,
called computations and the name of the place in the source.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

_SIZES = {"pred": 1.0, "s4": 0.5, "u4": 0.5, "token": 0.0, "opaque": 0.0}
_SHAPE = re.compile(r"([a-z]+[0-9a-z]*)\[([0-9,]*)\]")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_NAME = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = ")
_CALLS = re.compile(r"(?:calls|to_apply|body|condition|branch_computations)=(\{[^}]*\}|%?[\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Shape:
    """An array's type, such as bf16, and its sides."""

    dtype: str
    sides: tuple[int, ...]

    @property
    def count(self) -> int:
        """How many numbers it has."""
        return math.prod(self.sides)

    @property
    def size(self) -> float:
        """Its bytes, without padding."""
        bits = re.search(r"\d+", self.dtype)
        default = int(bits[0]) / 8 if bits else 0.0
        return self.count * _SIZES.get(self.dtype, default)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
      name: of its result.
      opcode: such as "fusion".
      shapes: of its result; several of a tuple.
      operands: names.
      rest: the attributes as they stand in the text.
    """

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    rest: str

    def attribute(self, name: str) -> str:
        """The value of an attribute that holds no comma outside of quotes; empty without it."""
        found = re.search(rf'\b{name}=(?:"([^"]*)"|([^\s,]+))', self.rest)
        return (found[1] or found[2] or "") if found else ""

    @property
    def calls(self) -> dict[str, tuple[str, ...]]:
        """Computations it calls, by what they are to it: calls, to_apply, body, condition, ..."""
        return {
            found[0].partition("=")[0]: tuple(re.findall(r"[\w.\-]+", found[1]))
            for found in _CALLS.finditer(self.rest.partition("metadata={")[0])
        }

    @property
    def trips(self) -> int | None:
        """How often the body of a loop runs, where the compiler knows it."""
        found = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', self.rest)
        return int(found[1]) if found else None

    @property
    def place(self) -> str:
        """The name that the source gives it, as JAX writes it."""
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found[1] if found else ""


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program.

    Attributes:
      entry: the name of the computation that runs.
      computations: the instructions of each, in the order in which they are scheduled.
    """

    entry: str
    computations: dict[str, list[Instruction]]

    @functools.cached_property
    def shapes(self) -> dict[tuple[str, str], tuple[Shape, ...]]:
        """The shapes of every result, by computation and name."""
        return {
            (name, each.name): each.shapes
            for name, instructions in self.computations.items()
            for each in instructions
        }

    def operand_shapes(self, computation: str, instruction: Instruction) -> list[Shape]:
        """The shapes of an instruction's operands, tuples taken apart."""
        found = (self.shapes.get((computation, name), ()) for name in instruction.operands)
        return [shape for shapes in found for shape in shapes]

    def inside(self, instruction: Instruction) -> Iterator[tuple[str, Instruction]]:
        """All instructions of what an instruction calls, however deep, with their computations."""
        for names in instruction.calls.values():
            for name in names:
                for each in self.computations.get(name, ()):
                    yield name, each
                    yield from self.inside(each)


def parse(text: str) -> Program:
    """Reads a program.

    Raises:
      ValueError: the text has no entry computation.
    """
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if head := _HEAD.match(line):
            current = computations.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and (name := _NAME.match(line)):
            current.append(_instruction(name[2], line[name.end() :]))
    if not entry:
        raise ValueError("no ENTRY computation in the text")
    return Program(entry, computations)


def _instruction(name: str, text: str) -> Instruction:
    """Reads what stands to the right of `NAME = `."""
    end = _closing(text, 0) if text.startswith("(") else text.index(" ")
    shapes = tuple(
        Shape(dtype, tuple(int(side) for side in sides.split(",") if side))
        for dtype, sides in _SHAPE.findall(text[:end])
    )
    opened = text.index("(", end)
    closed = _closing(text, opened)
    operands = re.findall(r"%([\w.\-]+)", text[opened:closed])
    return Instruction(name, text[end:opened].strip(), shapes, tuple(operands), text[closed:])


def _closing(text: str, opened: int) -> int:
    """Just behind the bracket that closes the one at `opened`."""
    depth = 0
    for place in range(opened, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if not depth:
            return place + 1
    raise ValueError(f"an open bracket: {text[opened : opened + 60]}")
