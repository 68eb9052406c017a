import textwrap

import pytest

from mixtrain_jax import cli
from mixtrain_jax.config import load as config
from mixtrain_jax.errors import UserError

CONFIG = """
    from mixtrain_jax.config import recipes
    from ml_collections import ConfigDict
    from ml_collections.config_dict import placeholder

    def get_config(argument):
        if argument not in ("", "plain"):
            raise ValueError(f"no variant {argument!r}; there is 'plain'")
        return ConfigDict(dict(
            name=f"{recipes.base().seed}/{argument}", steps=placeholder(int),
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
    for name in ("gs://bucket/mine.py", "gs://bucket/mine.py:plain", "s3://bucket/mine.py"):
        with pytest.raises(UserError, match="copy the config to this machine"):
            config.load(name)
    path = tmp_path / "bare.py"
    path.write_text("from ml_collections import ConfigDict\ndef get_config(): return ConfigDict()")
    assert len(config.load(str(path))) == 0
    with pytest.raises(UserError, match="takes no argument, but was given 'plain'"):
        config.load(f"{path}:plain")


def test_a_config_is_locked(file):
    with pytest.raises(AttributeError):
        config.load(file).data.new = 1


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
        (["--config=FILE", "--workdir="], "--workdir is empty: give it a value, or leave it out"),
        (["--config=FILE", "--workdir"], "argument --workdir: expected one argument"),
        (["--config=FILE", "--workdir=x", "--config.count"], "--config.count needs a value"),
        (["--config=FILE", "--workdir=x", "--config.count=x"], "config.count=x: expected a whole"),
        (["--config=none.py", "--workdir=x"], "config file 'none.py' does not exist"),
        (["--workdir=x"], "x: no run's config.json is there; say --config=FILE too"),
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
    assert run(raises(ConnectionResetError(104, "Connection reset by peer")), *arguments) == 2
    told = capsys.readouterr().err
    assert told == "error: a server or a network failed: Connection reset by peer\n"
    with pytest.raises(ZeroDivisionError):
        cli.run(raises(ZeroDivisionError()), make_parser(), arguments)


def test_recipes_load_by_path_or_name_from_any_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {path.stem for path in (config.ROOT / "configs").glob("[a-z]*.py")}
    assert names == {"cascade", "cells", "faster", "faster_r50", "quickstart"}
    for name in names:
        loaded = [config.load(each) for each in (name, f"configs/{name}.py", f"{name}:plain")]
        assert loaded[0].to_dict() == loaded[1].to_dict()
        assert loaded[0].mixtraining.enabled and not loaded[2].mixtraining.enabled
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "cascade.py").write_text("def get_config(): return {}")
    with pytest.raises(UserError, match="returned dict"):  # a file that is there comes first
        config.load("configs/cascade.py")
    with pytest.raises(UserError, match="'casade' does not exist; recipes are cascade, cells"):
        config.load("casade")


@pytest.mark.parametrize(
    ("field", "text", "message"),
    [
        ("optimizer.learning_rate", "nan", "is nan: give finite numbers"),
        ("optimizer.learning_rate", "-0.1", "is -0.1: make it larger than 0"),
        ("optimizer.betas", "0.9,1.5", "give 2 numbers, each: choose from 0 to less than 1"),
        ("optimizer.drops", "0.5,2", "choose from 0 to 1"),
        ("data.std", "1,1,0", "give 3 numbers, each: make it larger than 0"),
        ("data.max_bad_share", "1.5", "choose from 0 to 1"),
        ("data.val.buckets", "160,160", "give pairs .height, width. of multiples of 32"),
        ("data.train.buckets", "((800, 1333),)", "give pairs"),
        ("data.classes", "(0, 1)", "give names in quotes"),
        ("optimizer.drop_steps", "8k,11k", "give whole numbers of steps"),
        ("optimizer.drop_steps", "0.67,0.92", "shares of training are config.optimizer.drops"),
        ("data.train.scale", "1333,800,400", "give .longest long side"),
        ("data.augment.cutout_holes", "5,1", "give 2 numbers from 0 on, in ascending order"),
        ("data.augment.cutout_ratios", "()", "give at least one"),
        ("model.backbone.window_size", "0", "make it at least 1"),
        ("model.backbone.num_heads", "5,6,12,24", "stage 0 has 96 channels, which 5 heads"),
        ("model.roi_head.loss_weights", "1,1", "give as many positive_ious, .* as stages"),
        ("model.rpn.positive_share", "inf", "give finite numbers"),
        ("mixtraining.ema_momentum", "1", "choose from 0 to less than 1"),
        ("mixtraining.gt_score_threshold", "-0.1", "choose from 0 to 1"),
        ("seed", "-1", "choose from 0 to"),
        ("eval.every", "-5", "make it at least 0"),
    ],
)
def test_values_that_cannot_work_are_refused(field, text, message):
    with pytest.raises(UserError, match=f"config.{field.rpartition('.')[0]}.*{message}"):
        config.load("cascade", {field: text})


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("config.bach_size = 4", r"sets config.bach_size, .* nearest is config.batch_size"),
        ("config.optimizer.learnign_rate = 1.0", "nearest is config.optimizer.learning_rate"),
        ('config.batch_size = "4"', r"mine.py, line 6: TypeError"),
        ("config.optimiser.name = 1", r"mine.py, line 6: "),
        ('raise ValueError("no")', r"mine.py, line 6: ValueError: no"),
        ('config.data.train.scale = ("a", 1, 2)', "config.data.train.scale is .*: expected a tup"),
        ("config.model.roi_head.delta_stds = (0.1,)", "roi_head.delta_stds is .*: expected a tu"),
    ],
)
def test_a_mistake_in_a_recipe_is_named_with_its_line(tmp_path, line, expected):
    path = tmp_path / "mine.py"
    path.write_text(
        "from mixtrain_jax.config import recipes\n\n\ndef get_config(argument=None):\n"
        f"    config = recipes.base()\n    {line}\n    return config\n"
    )
    with pytest.raises(UserError, match=expected):
        config.load(str(path))


def test_class_names_may_be_numbers():
    for text in ("0,1", "('0', '1')", "0, 1"):
        found = config.load("quickstart", {"data.classes": text})
        assert found.data.classes == ("0", "1")
    assert config.override_all(found, {"data.classes": "2,3"}).data.classes == ("2", "3")
    assert config.override_all(found, {"data.classes": "()"}).data.classes == ()
