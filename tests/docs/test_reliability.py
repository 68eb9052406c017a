"""Every row of docs/reliability.md names a test that is there."""

import ast
import re

from mixtrain_jax import errors
from mixtrain_jax.config import load

PAGE = (load.ROOT / "docs" / "reliability.md").read_text()
ROWS = re.findall(r"\| `([\w/]+\.py)::(\w+)`( \(slow\))? \|$", PAGE, re.M)


def test_every_row_names_a_test_that_exists():
    faults = PAGE[PAGE.index("## Faults") :]
    told = [line for line in faults.splitlines() if line.startswith("| ")]
    assert len(ROWS) == len(told) - 1  # the head
    assert len({name for _, name, _ in ROWS}) == len(ROWS)
    for file, name, slow in ROWS:
        tree = ast.parse((load.ROOT / "tests" / file).read_text())
        (found,) = [each for each in tree.body if isinstance(each, ast.FunctionDef)
                    and each.name == name]  # fmt: skip
        marks = [ast.unparse(each) for each in found.decorator_list]
        assert bool(slow) == ("pytest.mark.slow" in marks), name


def test_one_command_runs_all_of_them():
    (command,) = re.findall(
        r"^test-faults:.*\n((?:\t.*\n)+)", (load.ROOT / "Makefile").read_text(), re.M
    )
    asked = re.findall(r"tests/([\w/.]+)", command)
    for file in {file for file, _, _ in ROWS}:
        assert any(file == each or file.startswith(f"{each}/") for each in asked), file


def test_the_codes_are_those_of_the_program():
    rows = dict(re.findall(r"^\| (\d+) \| .* \| (yes|no|) ?\|$", PAGE, re.M))
    told = {int(code) for code, again in rows.items() if again == "yes"}
    assert told == set(errors.RESTARTABLE)
