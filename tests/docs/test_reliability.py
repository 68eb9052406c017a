"""Every row of docs/reliability.md names a test that is there."""

import ast
import re

from mixtrain_jax import errors
from mixtrain_jax.config import load

PAGE = (load.ROOT / "docs" / "reliability.md").read_text()


def test_every_row_names_a_test_that_exists():
    rows = re.findall(r"\| `([\w/]+\.py)::(\w+)`( \(slow\))? \|$", PAGE, re.M)
    faults = PAGE[PAGE.index("## Faults") :]
    told = [line for line in faults.splitlines() if line.startswith("| ")]
    assert len(rows) == len(told) - 1  # the head
    assert len({name for _, name, _ in rows}) == len(rows)
    for file, name, slow in rows:
        tree = ast.parse((load.ROOT / "tests" / file).read_text())
        (found,) = [each for each in tree.body if isinstance(each, ast.FunctionDef)
                    and each.name == name]  # fmt: skip
        marks = [ast.unparse(each) for each in found.decorator_list]
        assert bool(slow) == ("pytest.mark.slow" in marks), name


def test_the_codes_are_those_of_the_program():
    rows = dict(re.findall(r"^\| (\d+) \| .* \| (yes|no|) ?\|$", PAGE, re.M))
    told = {int(code) for code, again in rows.items() if again == "yes"}
    assert told == set(errors.RESTARTABLE)
