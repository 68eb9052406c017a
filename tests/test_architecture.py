"""Nothing imports upwards, importing changes nothing in the process, --help answers at once."""

import ast
import pathlib
import resource
import subprocess
import sys

import pytest

from mixtrain_jax.config import load

PACKAGE = load.ROOT / "mixtrain_jax"
FILES = sorted(path for path in PACKAGE.rglob("*.py") if "configs" not in path.parts)
# From the lowest up: a folder may import from layers below it and from itself.
LAYERS = (
    ("errors",),
    ("types", "ops"),
    ("runtime",),
    ("data",),
    ("config", "models"),
    ("mixtraining", "auditing"),
    ("pages",),
    ("evaluation", "inspection"),
    ("training",),
    ("process", "cli", "api", "train", "evaluate", "predict", "audit", "check"),
)
LAYER = {folder: number for number, folders in enumerate(LAYERS) for folder in folders}
COMMANDS = ("train", "evaluate", "predict", "audit", "check")


def folder_of(path):
    """The folder that a file of the package is in, or the file itself at the top."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path):
    """The modules of this package that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mixtrain_jax"):
            for alias in node.names:
                yield f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.startswith("mixtrain_jax"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_imports_upwards(path):
    here = folder_of(path)
    if here == "__init__":
        return
    for name in imports(path):
        there = name.split(".")[1] if "." in name else here
        if there in LAYER and there != here:
            assert LAYER[there] < LAYER[here] or here in LAYERS[-1], f"{here} imports {name}"


def test_every_folder_has_a_layer():
    assert {folder_of(path) for path in FILES} - {"__init__"} <= set(LAYER)


def test_tensorflow_is_imported_by_the_data_modules_only():
    for path in FILES:
        if folder_of(path) != "data":
            lines = path.read_text().splitlines()
            assert not [
                line
                for line in lines
                if line.strip().startswith(("import tensorflow", "from tensorflow"))
            ]


WITHOUT_TENSORFLOW = """
import importlib, pkgutil, sys

sys.modules["tensorflow"] = None  # its import fails
import mixtrain_jax

for name in ("models", "ops", "mixtraining", "config"):
    for module in pkgutil.walk_packages([f"mixtrain_jax/{name}"], f"mixtrain_jax.{name}."):
        importlib.import_module(module.name)
for name in ("mixtrain_jax.training.update", "mixtrain_jax.runtime.checkpoint", "tools.benchmark",
             "tools.benchmarks.models", "tools.compare_devices", "tools.convert_torch"):
    importlib.import_module(name)
print("all")
"""


def test_models_and_the_step_need_no_tensorflow():
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TENSORFLOW], cwd=load.ROOT, capture_output=True, text=True
    )
    assert done.stdout == "all\n", done.stderr


def test_pages_know_no_models():
    for path in (PACKAGE / "pages").glob("*.py"):
        assert not [name for name in imports(path) if ".models" in name or name.endswith(".View")]


def test_files_are_short_and_say_what_lives_there():
    for path in FILES:
        text = path.read_text()
        assert len(text.splitlines()) <= 400, path
        assert not text or ast.get_docstring(ast.parse(text)), path


def test_no_command_changes_a_config():
    """Nothing in the package stores to a field of a config but what makes configs."""
    makers = {PACKAGE / "config" / name for name in ("load.py", "recipes.py", "resolve.py")}
    makers |= {PACKAGE / "config" / "saved.py"}
    for path in set(FILES) - makers:
        for node in ast.walk(ast.parse(path.read_text())):
            targets = node.targets if isinstance(node, ast.Assign) else []
            for target in targets:
                if isinstance(target, ast.Attribute):
                    assert "config" not in ast.unparse(target.value), f"{path}:{node.lineno}"


IMPORT_ALL = """
import importlib, logging, os, pkgutil, signal, sys
import absl.logging, jax, numpy, orbax.checkpoint, tensorflow as tf, tensorflow_datasets
import mixtrain_jax

def state():
    return (
        dict(os.environ), sys.unraisablehook, sys.excepthook, list(sys.path),
        [signal.getsignal(number) for number in signal.valid_signals()],
        [(log.level, list(log.filters), list(log.handlers)) for log in
         (logging.getLogger(), absl.logging.get_absl_logger(), logging.getLogger("asyncio"))],
        absl.logging.get_verbosity(), tf.config.get_visible_devices(),
        dict(jax.config.values),
    )

before = state()
for module in pkgutil.walk_packages(mixtrain_jax.__path__, "mixtrain_jax."):
    if ".configs" not in module.name and "__main__" not in module.name:
        importlib.import_module(module.name)
after = state()
assert before == after, [pair for pair in zip(before, after) if pair[0] != pair[1]]
print("the same")
"""


def test_importing_everything_changes_nothing_in_the_process():
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL], cwd=load.ROOT, capture_output=True, text=True
    )
    assert done.stdout == "the same\n", done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_help_answers_at_once(name):
    """Light imports only: a tenth of a second of a processor, whatever else runs beside."""
    command = [sys.executable, "-m", f"mixtrain_jax.{name}", "--help"]

    def used():
        of_children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return of_children.ru_utime + of_children.ru_stime

    seconds = []
    for _ in range(3):
        start = used()
        done = subprocess.run(command, cwd=load.ROOT, capture_output=True, text=True, check=True)
        seconds.append(used() - start)
    assert "--config" in done.stdout and "--version" in done.stdout
    assert min(seconds) < 1.5


def test_version_is_told(capsys):
    import mixtrain_jax
    from mixtrain_jax import cli

    with pytest.raises(SystemExit) as end:
        cli.run(pytest.fail, cli.parser("A program."), ["--version"])
    assert not end.value.code
    assert capsys.readouterr().out == f"mixtrain_jax {mixtrain_jax.__version__}\n"
    citation = pathlib.Path(load.ROOT / "CITATION.cff").read_text()
    assert f"version: {mixtrain_jax.__version__}\n" in citation


@pytest.mark.parametrize(
    "module", ["training.loop", "training.folds", "evaluation.predict", "inspection.report", "api"]
)
def test_nothing_but_pages_needs_what_pages_are_made_with(module):
    """As after `pip install .`, where nothing else brings these packages."""
    program = (
        "import sys; sys.modules['jinja2'] = sys.modules['markupsafe'] = None\n"
        f"import mixtrain_jax.{module}"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=load.ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
