"""Config files, and the fields a command line changes in them.

A config file, or recipe, is Python with a function `get_config(argument)` that returns an
ml_collections ConfigDict; `cascade:plain` calls the one in configs/cascade.py with "plain". `load`
reads such a file and applies overrides, each checked against the type the field has and against
what the schema says it may hold.
"""

import ast
import copy
import difflib
import importlib.util
import inspect
import pathlib
import traceback
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict, FieldReference

from mixtrain_jax.config import rules, schema
from mixtrain_jax.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]
# An installed package has the recipes inside, a checkout has them beside it.
INSTALLED, CHECKOUT = ROOT / "mixtrain_jax" / "configs", ROOT / "configs"
RECIPES = INSTALLED if INSTALLED.is_dir() else CHECKOUT
Values = tuple[Any, ...]
STAGES = ("positive_ious", "delta_stds", "loss_weights")  # of model.roi_head: of equal lengths


def load(source: str, overrides: Mapping[str, str] | Iterable[str] = ()) -> ConfigDict:
    """Reads a config file and changes fields of it.

    Args:
      source: path of the file or name of a recipe, with an argument for its `get_config` after a
        colon if it takes one.
      overrides: text of the fields to change, {"data.max_boxes": "50"} or ["data.max_boxes=50"].

    Returns:
      The config, locked: a field that is not there can be neither read nor set.

    Raises:
      UserError: the file is missing or fails, refuses its argument or sets what is no field, or
        there is no such field or type.
    """
    path, _, argument = source.partition(":")
    if argument.startswith("//"):
        raise UserError(
            f"--config={source}: copy the config to this machine; it cannot be in a bucket"
        )
    config = _get_config(find(path), argument)
    known, given = [name for name, _ in schema.fields()], _fields(config)
    strange = next((name for name in given if name not in known), None)
    if strange is not None and given.keys() >= set(known):  # a misspelt field of a whole recipe
        raise UserError(
            f"config file {path!r} sets config.{strange}, which is no field; the nearest is "
            f"config.{_nearest(strange, known)}"
        )
    if not isinstance(overrides, Mapping):
        overrides = dict(_split(text) for text in overrides)
    return override_all(config, overrides)


def override_all(config: ConfigDict, overrides: Mapping[str, str]) -> ConfigDict:
    """Returns a config with fields changed by text, checked and locked; raises as `load` does.

    What is set as a share of training, or in epochs, counts over what the config has in steps.
    """
    result = copy.deepcopy(config).unlock()
    for name, text in overrides.items():
        override(result, name, text)
        in_steps = schema.IN_STEPS.get(name, name)
        if in_steps not in overrides and None not in (get(result, name), get(result, in_steps)):
            override(result, in_steps, "None")
    check(result)
    return result.lock()


def find(name: str) -> str:
    """Returns the path of a config file: `name` itself, or the recipe that it names.

    "cascade" and "configs/cascade.py" name the recipe of the checkout or of the installed package
    whatever the working directory is; a file that is there is taken first.

    Raises:
      UserError: there is neither such a file nor such a recipe.
    """
    path = pathlib.Path(name)
    if path.is_file():
        return name
    if path.parent in (pathlib.Path("."), pathlib.Path("configs")):
        recipe = RECIPES / f"{path.stem}.py"
        if recipe.is_file() and path.suffix in ("", ".py"):
            return str(recipe)
    recipes = sorted(file.stem for file in RECIPES.glob("[a-z]*.py"))
    raise UserError(f"config file {name!r} does not exist; recipes are {', '.join(recipes)}")


def check(config: ConfigDict) -> None:
    """Checks what a field's type alone does not say; a field that is not there is not missed.

    Raises:
      UserError: a field has a value that nothing can be done with; the message names it.
    """
    values = {name: value for name, (_, value, _) in _fields(config).items() if value is not None}
    for name, value in values.items():
        if not rules.finite(value):
            raise UserError(f"config.{name} is {value}: give finite numbers")
    for name, field in schema.fields():
        if name not in values:
            continue
        try:
            if isinstance(field.default, tuple):
                _like(tuple(values[name]), field.default, "")
        except (TypeError, ValueError) as error:
            raise UserError(f"config.{name} is {values[name]!r}: expected {error}") from None
        if field.rule is not None and not field.rule.test(values[name]):
            raise UserError(f"config.{name} is {values[name]!r}: {field.rule.text}")
    stages = {name: len(values.get(f"model.roi_head.{name}", ())) for name in STAGES}
    if len(set(stages.values())) > 1:
        raise UserError(f"config.model.roi_head: give as many {', '.join(stages)} as stages")
    if values.get("model.backbone.name") == "swin":
        channels = values["model.backbone.embed_dim"]
        for stage, heads in enumerate(values["model.backbone.num_heads"]):
            if channels * 2**stage % heads:
                raise UserError(
                    f"config.model.backbone.num_heads: stage {stage} has {channels * 2**stage} "
                    f"channels, which {heads} heads cannot share equally"
                )


def override(config: ConfigDict, name: str, text: str) -> None:
    """Sets the field `name` ("data.val.scale") of a config to what `text` says in the field's type.

    Raises:
      UserError: there is no such field (the nearest one is named), or the text has another type.
    """
    fields = _fields(config)
    if name not in fields:
        if isinstance(get(config, name), ConfigDict):
            raise UserError(
                f"config.{name} is a group of fields; set one of them: "
                + ", ".join(f for f in fields if f.startswith(f"{name}."))
            )
        raise UserError(f"config has no field {name!r}; the nearest is {_nearest(name, fields)!r}")
    group, _, leaf = name.rpartition(".")
    try:
        value = _parse(text, *fields[name])
    except ValueError as error:
        raise UserError(f"config.{name}={text}: expected {error}") from None
    get(config, group)[leaf] = value


def _get_config(path: str, argument: str) -> ConfigDict:
    """Runs the file's `get_config`; whatever goes wrong in it is one line with the place."""
    spec = importlib.util.spec_from_file_location("mixtrain_config", path)
    if spec is None or spec.loader is None:
        raise UserError(f"config file {path!r} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise UserError(f"config file {path!r} has no function get_config")
        if inspect.signature(module.get_config).parameters:
            config = module.get_config(argument)
        elif argument:
            raise UserError(f"config file {path!r} takes no argument, but was given {argument!r}")
        else:
            config = module.get_config()
    except UserError:
        raise
    except SyntaxError as error:
        raise UserError(
            f"config file {error.filename}, line {error.lineno}: {error.msg}"
        ) from error
    except Exception as error:
        if isinstance(error, ValueError) and argument:
            raise UserError(
                f"config file {path!r} refuses its argument {argument!r}: {error}"
            ) from error
        frames = traceback.extract_tb(error.__traceback__)
        place = next((each for each in reversed(frames) if each.filename == path), frames[-1])
        raise UserError(
            f"config file {path!r} failed in {place.filename}, line {place.lineno}: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"get_config of {path!r} returned {type(config).__name__}, not a ConfigDict"
        )
    return config


def _split(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"config field {name!r} was given no value; write {name}=VALUE")
    return name, value


def _fields(config: ConfigDict, prefix: str = "") -> dict[str, tuple[type, Any, bool]]:
    """Type, value and whether it may be unset (None), by the dotted name of each field."""
    fields: dict[str, tuple[type, Any, bool]] = {}
    for name, value in config.items(preserve_field_references=True):
        if isinstance(value, ConfigDict):
            fields |= _fields(value, f"{prefix}{name}.")
        else:
            optional = isinstance(value, FieldReference)
            fields[prefix + name] = config.get_type(name), config[name], optional
    return fields


def get(config: ConfigDict, name: str) -> Any:
    """What stands at a dotted name, or None."""
    found: Any = config
    for part in name.split(".") if name else ():
        if not isinstance(found, ConfigDict) or part not in found:
            return None
        found = found[part]
    return found


def _nearest(name: str, names: Iterable[str]) -> str:
    """The name most like `name`, as a whole or in its last part."""

    def likeness(other: str) -> float:
        whole = difflib.SequenceMatcher(None, name, other).ratio()
        last = difflib.SequenceMatcher(None, name.split(".")[-1], other.split(".")[-1]).ratio()
        return max(whole, last) + whole / 1000

    return max(names, key=likeness)


def _parse(text: str, kind: type, value: Any, optional: bool) -> Any:
    """Text as a value of a type; a ValueError names what was expected."""
    unset = " or None" if optional else ""
    if optional and text in ("None", "none"):
        return None
    if kind is str:
        return text
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(f"true or false{unset}")
        return text.lower() == "true"
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            name = {int: "a whole number", float: "a number"}[kind]
            raise ValueError(f"{name} (type {kind.__name__}){unset}") from None
    if kind is tuple:
        names = tuple(part.strip() for part in text.strip("()[]").split(","))
        try:
            literal = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            literal = names
        of_texts = value is not None and all(isinstance(each, str) for each in value)
        if of_texts and not text.startswith(("(", "[")):
            literal = names if all(names) else ()  # of classes, perhaps 0 and 1
        if not isinstance(literal, (tuple, list)):
            literal = (literal,)
        return _like(tuples(literal), value, unset)
    raise ValueError(f"no override, as a field of type {kind.__name__} is set in the file only")


def _like(value: Values, example: Values | None, unset: str) -> Values:
    """Checks that members have the type of the example's; ints may stand for floats."""
    kinds = {type(member) for member in example or ()}
    if len(kinds) != 1:
        return value
    (kind,) = kinds
    if kind is tuple and example and all(isinstance(member, tuple) for member in value):
        return tuple(_like(member, example[0], unset) for member in value)
    if kind is float and all(type(member) in (int, float) for member in value):
        return tuple(float(member) for member in value)
    if not all(type(member) is kind for member in value):
        raise ValueError(f"a tuple of type {kind.__name__} such as {example}{unset}")
    return value


def tuples(value: Any) -> Any:
    """The same with tuples in place of lists, at every depth."""
    if isinstance(value, dict):
        return {key: tuples(member) for key, member in value.items()}
    if isinstance(value, (list, tuple)):
        return tuple(tuples(member) for member in value)
    return value
