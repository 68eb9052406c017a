"""Writes docs/config.md, the reference of all config fields, from their declaration.

python tools/config_reference.py
"""

import argparse
import pathlib
import re
import sys
from collections.abc import Iterator

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # of a plain checkout

from mixtrain_jax.config import schema

PATH = pathlib.Path(__file__).resolve().parents[1] / "docs" / "config.md"
HEAD = """# Configuration reference

Every field, as `mixtrain_jax/config/schema.py` declares it; this page is written by
`python tools/config_reference.py`. A field is set on the command line as `--config.FIELD=VALUE`, or
in a recipe. The values are those of the base; each recipe in `configs/` changes some.

*Kind* says what a run that is started again may change: **identity** fields make it another run
and are refused without `--allow_changes`, **schedule** fields are taken and told with the learning
rates before and after, **free** fields are taken.
"""


def reference() -> str:
    """Returns the page as Markdown."""
    return HEAD + "".join(_group("", schema.FIELDS))


def _group(name: str, group: schema.Group) -> Iterator[str]:
    """A heading and a table for the fields of a group, then those of the groups in it."""
    fields = {key: each for key, each in group.items() if isinstance(each, schema.Field)}
    if fields:
        yield f"\n## {name or 'the run'}\n\n"
        yield "| field | base | what | may be | kind |\n|---|---|---|---|---|\n"
        for key, field in fields.items():
            full = f"{name}.{key}" if name else key
            value = "unset" if field.default is None else f"`{field.default!r}`"
            rule = re.sub(r"\b(make it|choose|give) ", "", field.rule.text) if field.rule else ""
            yield f"| `{full}` | {value} | {field.help} | {rule} | {field.kind} |\n"
    for key, each in group.items():
        if not isinstance(each, schema.Field):
            yield from _group(f"{name}.{key}" if name else key, each)


def main() -> None:
    """Writes the page."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    PATH.write_text(reference())
    print(f"wrote {PATH}")


if __name__ == "__main__":
    main()
