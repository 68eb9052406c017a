"""What a config field may hold: small rules, each a test and the words that explain it.

A rule is handed a field's value and says whether something can be done with it. Its text completes
the sentence "config.NAME is VALUE: ..." in messages, and stands in the reference of all fields.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple


class Rule(NamedTuple):
    """A test of a value, and what to say when it fails.

    Attributes:
      text: what to do instead, such as "make it at least 1".
      test: returns whether a value may stand.
    """

    text: str
    test: Callable[[Any], bool]


def one_of(*choices: Any) -> Rule:
    """The value is one of these."""
    return Rule(f"choose {' or '.join(map(repr, choices))}", lambda value: value in choices)


def at_least(least: float) -> Rule:
    """Every number of the value, at any depth, is at least this."""
    return Rule(f"make it at least {least}", lambda value: all(n >= least for n in numbers(value)))


def above(limit: float) -> Rule:
    """Every number of the value is larger than this."""
    return Rule(
        f"make it larger than {limit}", lambda value: all(n > limit for n in numbers(value))
    )


def between(least: float, most: float) -> Rule:
    """Every number of the value lies between these two, or is one of them."""
    return Rule(
        f"choose from {least} to {most}",
        lambda value: all(least <= n <= most for n in numbers(value)),
    )


def below_one() -> Rule:
    """Every number of the value is at least 0 and less than 1."""
    return Rule(
        "choose from 0 to less than 1", lambda value: all(0 <= n < 1 for n in numbers(value))
    )


def length(count: int, rule: Rule | None = None) -> Rule:
    """The value has so many members, which obey another rule."""
    more = f", each: {rule.text}" if rule else ""
    return Rule(
        f"give {count} numbers{more}",
        lambda value: len(value) == count and (rule is None or rule.test(value)),
    )


def some(rule: Rule) -> Rule:
    """The value has at least one member, and all obey another rule."""
    return Rule(
        f"give at least one; {rule.text}", lambda value: len(value) > 0 and rule.test(value)
    )


def ascending(count: int, least: float) -> Rule:
    """The value is so many numbers from `least` on, none smaller than the one before."""

    def test(value: tuple[float, ...]) -> bool:
        return len(value) == count and list(value) == sorted(value) and value[0] >= least

    return Rule(f"give {count} numbers from {least} on, in ascending order", test)


def scale_range() -> Rule:
    """(longest long side, shortest short side, longest short side) of training views."""

    def test(value: tuple[int, ...]) -> bool:
        return len(value) == 3 and 0 < value[1] <= value[2] and value[0] > 0

    return Rule(
        "give (longest long side, shortest short side, longest short side), in pixels", test
    )


def parts() -> Rule:
    """A part and how many there are: (k, K) with 0 <= k < K."""
    return Rule(
        "give (k, K) with 0 <= k < K",
        lambda value: len(value) == 2 and 0 <= value[0] < value[1],
    )


def steps() -> Rule:
    """Whole numbers of steps."""
    return Rule(
        "give whole numbers of steps; shares of training are config.optimizer.drops",
        lambda value: all(type(n) is int and n >= 0 for n in value),
    )


def texts() -> Rule:
    """Texts alone."""
    return Rule(
        "give names in quotes, such as ('cat', 'dog')",
        lambda value: all(isinstance(each, str) for each in value),
    )


def bucket_list() -> Rule:
    """Pairs (height, width) of positive multiples of 32; none at all is a choice too."""

    def test(value: tuple[Any, ...]) -> bool:
        return all(
            isinstance(pair, tuple)
            and len(pair) == 2
            and all(isinstance(side, int) and side > 0 and side % 32 == 0 for side in pair)
            for pair in value
        )

    return Rule("give pairs (height, width) of multiples of 32, such as ((800, 1344),)", test)


def box_deltas() -> Rule:
    """Tuples of four positive numbers."""

    def test(value: tuple[Any, ...]) -> bool:
        return all(len(stds) == 4 and all(n > 0 for n in stds) for stds in value)

    return Rule("give four numbers larger than 0 for each stage", test)


def numbers(value: Any) -> Iterator[float]:
    """All numbers in a value: itself, or the members of nested tuples."""
    if isinstance(value, (tuple, list)):
        for member in value:
            yield from numbers(member)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield value


def finite(value: Any) -> bool:
    """Whether no number in a value is NaN or infinite."""
    return all(math.isfinite(number) for number in numbers(value))
