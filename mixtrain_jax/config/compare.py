"""What a run that is started again may change: fields compared one by one, by what they decide."""

from typing import Any, NamedTuple

from ml_collections import ConfigDict, FrozenConfigDict

from mixtrain_jax.config import schema


class Difference(NamedTuple):
    """A field with one value before and another now.

    Attributes:
      name: dotted, such as "optimizer.learning_rate".
      kind: `schema.IDENTITY`, `schema.SCHEDULE` or `schema.FREE`.
      before: the earlier value; None where there was no such field.
      now: the value asked for.
    """

    name: str
    kind: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"config.{self.name}: {self.before} before, {self.now} now"


def differences(before: Any, now: Any) -> list[Difference]:
    """Lists the fields in which two configs differ, in the order of the schema.

    Fields that the schema does not know, those of a recipe of one's own, count as identity.
    """
    kinds = {name: field.kind for name, field in schema.fields()}
    old, new = flat(before), flat(now)
    names = [*kinds, *sorted((old.keys() | new.keys()) - kinds.keys())]
    return [
        Difference(name, kinds.get(name, schema.IDENTITY), old.get(name), new.get(name))
        for name in names
        if old.get(name) != new.get(name)
    ]


def flat(config: ConfigDict | FrozenConfigDict, prefix: str = "") -> dict[str, Any]:
    """The values of a config by their dotted names."""
    values: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, (ConfigDict, FrozenConfigDict)):
            values |= flat(value, f"{prefix}{name}.")
        else:
            values[prefix + name] = value
    return values
