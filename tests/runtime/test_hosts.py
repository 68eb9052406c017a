"""What processes agree on, in a run of one; those of several are in tests/test_hosts.py."""

import pytest

from mixtrain_jax.errors import UserError
from mixtrain_jax.runtime import hosts


def test_alone_a_process_agrees_with_itself():
    assert hosts.from_first("x", {"a": (1, 2)}) == {"a": [1, 2]}
    assert hosts.from_all("x", 3) == [3]
    hosts.same_everywhere({"seed": 1})


def test_a_difference_names_host_and_field(monkeypatch):
    monkeypatch.setattr(
        hosts, "from_all", lambda name, value: [value, dict(value), dict(value, seed="1")]
    )
    with pytest.raises(UserError, match="host 2 differs from host 0 in seed: 1 there, 0 on host 0"):
        hosts.same_everywhere({"steps": "5", "seed": "0"})
    names = [f"field {number}" for number in range(20)]  # of several the first, on every host
    monkeypatch.setattr(hosts, "from_all", lambda name, value: [value, dict.fromkeys(names, "1")])
    with pytest.raises(UserError, match="host 1 differs from host 0 in field 0: "):
        hosts.same_everywhere(dict.fromkeys(names, "0"))
