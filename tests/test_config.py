import pathlib
import subprocess
import sys
import textwrap

import pytest

from mixtrain_jax import cli, config
from mixtrain_jax.runtime.errors import UserError

CONFIG = """
    from configs import common
    from ml_collections import ConfigDict
    from ml_collections.config_dict import placeholder

    def get_config(argument):
        if argument not in ("", "plain"):
            raise ValueError(f"no variant {argument!r}; there is 'plain'")
        return ConfigDict(dict(
            name=f"{common.base().seed}/{argument}", steps=placeholder(int),
            epochs=placeholder(float), rate=0.1, count=3, flag=False, scale=(1333, 800),
            ratios=(0.5, 1.0), buckets=((416, 672), (672, 416)), channels=("r", "g"),
            data=dict(train=dict(images="a"), val=dict(images="b", max_boxes=100)),
        ))
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "some.py"
    path.write_text(textwrap.dedent(CONFIG))
    return str(path)


def test_loads_a_file_with_and_without_an_argument(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config.load("some.py").name == "0/"
    assert config.load(file + ":plain").name == "0/plain"
    with pytest.raises(UserError, match="some.py' refuses its argument 'x': no variant 'x'"):
        config.load(file + ":x")


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("name", "None", "None"),
        ("steps", "1000", 1000),
        ("steps", "None", None),
        ("epochs", "2", 2.0),
        ("epochs", "0.5", 0.5),
        ("rate", "1e-3", 1e-3),
        ("count", "-1", -1),
        ("flag", "true", True),
        ("flag", "False", False),
        ("scale", "(416, 672)", (416, 672)),
        ("scale", "416,672", (416, 672)),
        ("scale", "[416,672]", (416, 672)),
        ("scale", "416", (416,)),
        ("ratios", "1,2", (1.0, 2.0)),
        ("buckets", "((32, 64),)", ((32, 64),)),
        ("buckets", "(32, 64), (64, 32)", ((32, 64), (64, 32))),
        ("channels", "b, g", ("b", "g")),
        ("data.train.images", "a=b:c", "a=b:c"),
        ("data.val.max_boxes", "7", 7),
    ],
)
def test_overrides_take_the_type_of_the_field(file, field, text, value):
    for overrides in ({field: text}, [f"{field}={text}"]):
        result = config.load(file, overrides)
        for part in field.split("."):
            result = result[part]
        assert result == value
        assert type(result) is type(value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stepz=3", "config has no field 'stepz'; the nearest is 'steps'"),
        ("max_boxes=3", "config has no field 'max_boxes'; the nearest is 'data.val.max_boxes'"),
        ("data.val.image=x", "config has no field 'data.val.image'; .* 'data.val.images'"),
        ("name.x=1", "config has no field 'name.x'"),
        ("data.val=x", "config.data.val is a group .*: data.val.images, data.val.max_boxes"),
        ("steps=1.5", "config.steps=1.5: expected a whole number .* or None"),
        ("count=None", r"config.count=None: expected a whole number \(type int\)$"),
        ("rate=fast", "config.rate=fast: expected a number"),
        ("flag=1", "config.flag=1: expected true or false"),
        ("scale=a,b", r"config.scale=a,b: expected a tuple of type int such as \(1333, 800\)"),
        ("scale=1.5,2", "expected a tuple of type int"),
        ("buckets=32,64", "expected a tuple of type tuple"),
        ("buckets=((1,'a'),)", "expected a tuple of type int"),
        ("steps", "'steps' was given no value"),
    ],
)
def test_refuses_unknown_fields_and_wrong_types(file, override, message):
    with pytest.raises(UserError, match=message):
        config.load(file, [override])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "has no function get_config"),
        ("def get_config(a): return {}", "returned dict, not a ConfigDict"),
        ("def get_config(a)\n", "line 1: expected ':'"),
        ("\nimport no_such_module\n", "line 2: ModuleNotFoundError"),
        ("def get_config(a):\n  return a.b\n", "line 2: AttributeError"),
    ],
)
def test_a_broken_file_is_one_line(tmp_path, text, message):
    path = tmp_path / "broken.py"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        config.load(str(path))
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_an_argument_too_many(tmp_path):
    with pytest.raises(UserError, match="nothing.py' does not exist"):
        config.load(str(tmp_path / "nothing.py:plain"))
    path = tmp_path / "bare.py"
    path.write_text("from ml_collections import ConfigDict\ndef get_config(): return ConfigDict()")
    assert len(config.load(str(path))) == 0
    with pytest.raises(UserError, match="takes no argument, but was given 'plain'"):
        config.load(f"{path}:plain")


def test_a_config_is_locked(file):
    with pytest.raises(AttributeError):
        config.load(file).data.new = 1


def test_save_and_read_give_the_same_config(file, tmp_path):
    saved = config.load(file, ["steps=5"])
    config.save(saved, tmp_path / "config.json")
    restored = config.read(tmp_path / "config.json")
    assert restored.to_dict() == saved.to_dict()
    assert restored.buckets == ((416, 672), (672, 416))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="is not a saved config"):
        config.read(tmp_path / "config.json")
    with pytest.raises(UserError, match="cannot read .*: No such file"):
        config.read(tmp_path / "none.json")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        config.save(saved, tmp_path / "file" / "config.json")


def make_parser():
    parser = cli.parser("A program.")
    parser.add_argument("--workdir", required=True)
    parser.add_argument("images", nargs="*")
    return parser


def run(main, *arguments):
    with pytest.raises(SystemExit) as exit:
        cli.run(main, make_parser(), arguments)
    return exit.value.code


def test_flags_and_fields_in_any_order_with_equals_sign_or_space(file):
    seen = []
    code = run(
        seen.append, "--config.data.train.images", "DIR", "a.jpg", f"--config={file}",
        "--config.count=-2", "b.jpg", "--config.scale", "(1, 2)", "--workdir", "w",
    )  # fmt: skip
    assert code is None
    (flags,) = seen
    assert flags.config.data.train.images == "DIR"
    assert (flags.config.count, flags.config.scale) == (-2, (1, 2))
    assert (flags.workdir, flags.images) == ("w", ["a.jpg", "b.jpg"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=FILE", "--workdri=x"], "unknown flag --workdri; the nearest is --workdir"),
        (["--config=FILE"], "the following arguments are required: --workdir"),
        (["--config=FILE", "--workdir"], "argument --workdir: expected one argument"),
        (["--config=FILE", "--workdir=x", "--config.count"], "--config.count needs a value"),
        (["--config=FILE", "--workdir=x", "--config.count=x"], "config.count=x: expected a whole"),
        (["--config=none.py", "--workdir=x"], "config file 'none.py' does not exist"),
    ],
)
def test_bad_flags_are_one_line_and_code_2(file, capsys, arguments, message):
    arguments = [argument.replace("FILE", file) for argument in arguments]
    assert run(pytest.fail, *arguments) == cli.BAD_INPUT
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


def test_exit_codes(file, capsys):
    arguments = [f"--config={file}", "--workdir=x"]

    def raises(error):
        def main(flags):
            raise error

        return main

    assert run(lambda flags: 3, *arguments) == 3
    assert run(raises(UserError("a picture\nis missing")), *arguments) == 2
    assert capsys.readouterr().err == "error: a picture is missing\n"
    assert run(raises(KeyboardInterrupt()), *arguments) == cli.INTERRUPTED
    assert capsys.readouterr().err == ""
    with pytest.raises(ZeroDivisionError):
        cli.run(raises(ZeroDivisionError()), make_parser(), arguments)


def test_configs_of_the_repository_load_from_any_directory(tmp_path):
    root = pathlib.Path(__file__).parents[1]
    paths = set((root / "configs").glob("[a-z]*.py")) - {root / "configs" / "common.py"}
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); from mixtrain_jax import config\n"
        "for path in sys.argv[2:]: assert config.load(path).batch_size > 0"
    )
    subprocess.run([sys.executable, "-c", program, root, *paths], cwd=tmp_path, check=True)
