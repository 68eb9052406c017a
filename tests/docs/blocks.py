"""The code blocks of the documentation, and what their shell commands say.

A fenced block is Python (run), a shell (its commands are checked against the real flags and
fields), or text, JSON and the like (tagged so). A comment on the line before it changes that:

<!-- not run: WHY -->    Python that is not run, or a shell whose other programs are not known
<!-- file: PATH -->      the block is that file, word by word
"""

import ast
import functools
import importlib
import pathlib
import re
import shlex
from typing import NamedTuple

from mixtrain_jax.config import load as configs
from mixtrain_jax.config import schema
from mixtrain_jax.errors import UserError

ROOT = configs.ROOT
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = ("text", "json", "css", "diff")  # tags of blocks that hold no commands
FENCE = re.compile(
    r"^(?:<!-- (?P<mark>.*?) -->\n)?^```(?P<tag>\w*)\n(?P<body>.*?)^```$", re.M | re.S
)
# A command of ours somewhere in a shell's text, up to the end of the command.
OURS = re.compile(
    r"(?:python3?\s+(?:-m\s+(mixtrain_jax\.\w+)|(tools/\w+\.py))|(?<![\w./-])mixtrain-(\w+))"
    r"((?:[^\n;&|\"']|\"[^\"]*\"|'[^']*')*)"
)
PLACEHOLDER = re.compile(r"\b[A-Z]{3,}\b|\$|\.\.\.")
PROGRAMS = ("cd", "export", "gcloud", "git", "make", "pip", "pre-commit", "tensorboard", "unzip")


class Block(NamedTuple):
    """One fenced block: where it begins, its tag, the comment before it, its text."""

    page: str
    line: int
    tag: str
    mark: str
    body: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: pathlib.Path) -> list[Block]:
    """All blocks of a page, in order."""
    text, name = page.read_text(), str(page.relative_to(ROOT))
    found = []
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start("body"))
        found.append(Block(name, line, match["tag"], match["mark"] or "", match["body"]))
    fences = len(re.findall(r"^\s*```", text, flags=re.M))
    assert 2 * len(found) == fences, f"{name}: a fence is indented or not closed"
    return found


def why_not_run(block: Block) -> str:
    """The reason a block gives for not being run; empty where it gives none."""
    return block.mark.removeprefix("not run: ") if block.mark.startswith("not run: ") else ""


def commands(text: str) -> list[str]:
    """The commands of a shell's text, one each, without comments and line ends."""
    joined = re.sub(r"\\\n\s*", " ", text)
    lines = (re.sub(r"(^|\s)#.*", "", line).strip() for line in joined.splitlines())
    return [line for line in lines if line]


def program(command: str) -> str:
    """The program that a command starts, without variables set before it."""
    words = [word for word in shlex.split(command) if not re.match(r"^\w+=", word)]
    return pathlib.PurePath(words[0]).name if words else ""


def problems(text: str) -> list[str]:
    """What is wrong with the commands of ours in a shell's text, wherever they stand in it."""
    joined = re.sub(r"\\\n\s*", " ", text)
    found = []
    for word in re.findall(r"--config\.[^\s`\"';]+", joined):
        found += _field(word)
    for match in OURS.finditer(joined):
        module, tool, script, rest = match.groups()
        name = module or tool or f"mixtrain_jax.{script}"
        try:
            known = flags(name)
        except (ImportError, FileNotFoundError):
            found.append(f"{name} does not exist")
            continue
        for word in re.sub(r"(^|\s)#.*", "", rest).split():
            found += _flag(name, known, word.strip("`\"'"))
    for target in re.findall(r"^\s*make ([\w-]+)", text, flags=re.M):
        if f"\n{target}:" not in (ROOT / "Makefile").read_text():
            found.append(f"make {target}: no such target")
    for extra in re.findall(r"(?:mixtrain_jax|\.)\[([\w,-]+)\]", text):
        found += [f"no extra {each}" for each in extra.split(",") if each not in extras()]
    return found


def fields_in(text: str) -> list[str]:
    """What is wrong with config fields, as in `config.data.max_boxes`, in a text."""
    known = {name for name, _ in schema.fields()}
    groups = {name.rsplit(".", i)[0] for name in known for i in range(1, name.count(".") + 1)}
    found = []
    for span in re.findall(r"`([^`\n]+)`", text):
        for name in re.findall(r"(?<![\w./])(?:--)?config\.([a-z_]+(?:\.[a-z_]+)*)", span):
            module = name.split(".")[0] in ("json", "py")
            if not module and name not in known | groups:
                found.append(f"no field config.{name}")
    return found


@functools.cache
def flags(name: str) -> frozenset[str]:
    """The flags of a command or a tool."""
    if name.startswith("mixtrain_jax."):
        parser = importlib.import_module(name).parse()
        return frozenset(f for f in parser._option_string_actions if f.startswith("--"))
    text = (ROOT / name).read_text()
    found = {
        argument.value
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument"
        for argument in node.args
        if isinstance(argument, ast.Constant) and str(argument.value).startswith("--")
    }
    common = {"--config", "--version"} if "cli.parser(" in text else set()
    data = {"--data"} if "cli.add_data(" in text else set()
    return frozenset(found | common | data | {"--help"})


@functools.cache
def extras() -> frozenset[str]:
    """The extras of the package."""
    import tomllib

    content = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return frozenset(content["project"]["optional-dependencies"])


def _flag(name: str, known: frozenset[str], word: str) -> list[str]:
    """What is wrong with one word of a command of ours, but for fields of the config."""
    flag, _, value = word.partition("=")
    if flag.startswith("--") and not flag.startswith("--config.") and flag not in known:
        return [f"{name} has no flag {flag}"]
    if flag == "--config" and value.startswith("configs/") and not PLACEHOLDER.search(value):
        try:
            configs.load(value)
        except UserError as error:
            return [f"{name}: {error}"]
    return []


def _field(flag: str) -> list[str]:
    """What is wrong with --config.FIELD=VALUE."""
    field, _, value = flag.removeprefix("--config.").partition("=")
    if field.isupper():  # FIELD itself
        return []
    if field not in dict(schema.fields()):
        return [f"no field {field}"]
    try:
        if value and not PLACEHOLDER.search(value):
            configs.override(schema.default(), field, value)
    except UserError as error:
        return [str(error)]
    return []
