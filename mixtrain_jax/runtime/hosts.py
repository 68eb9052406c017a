"""What the processes of a run agree on beside their computing, by JAX's key-value service.

Nothing here sums over devices, so nothing here can hang because a device waits; a process that
waits in vain for another is ended by its watch (`watch.py`).
"""

import contextlib
import json
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

from mixtrain_jax.errors import UserError

ROOT = "mixtrain_jax"  # of all keys
# In errors of JAX and orbax, which have no class of their own.
_SIGNS_OF_LOSS = ("Gloo", "NCCL", "oordination service", "Barrier")
_counts: dict[str, int] = {}


def service() -> Any:
    """JAX's own record of this process: `client` is None where the run has no other."""
    from jax._src import distributed  # the service is not public

    return distributed.global_state


def index() -> int:
    """This process's number."""
    return int(service().process_id) if service().client is not None else 0


def count() -> int:
    """How many processes the run has."""
    return int(service().num_processes) if service().client is not None else 1


def tells_of_loss(error: BaseException) -> bool:
    """Whether an error says that another process of this run, not a server, does not answer."""
    return count() > 1 and any(sign in str(error) for sign in _SIGNS_OF_LOSS)


def from_first(name: str, value: Any) -> Any:
    """The first process's value, as JSON gives it back, on all processes; that of others is unread.

    All processes must call it in the same order. The first must not fail before; see `on_first`.
    """
    value = json.loads(json.dumps(value))
    if count() == 1:
        return value
    key = new_key(name)
    if index() == 0:
        service().client.key_value_set(key, json.dumps(value))
        return value
    return json.loads(_wait_for(key))


def from_all(name: str, value: Any) -> list[Any]:
    """The values of all processes in their order, as JSON gives them back, on each of them."""
    if count() == 1:
        return [json.loads(json.dumps(value))]
    key = new_key(name)
    service().client.key_value_set(f"{key}/{index()}", json.dumps(value))
    return [json.loads(_wait_for(f"{key}/{number}")) for number in range(count())]


@contextlib.contextmanager
def on_first(context: AbstractContextManager[Any]) -> Iterator[None]:
    """Enters a context on the first host only.

    Raises:
      UserError: entering it failed there; every host raises it.
    """
    with contextlib.ExitStack() as stack:
        trouble = None
        if index() == 0:
            try:
                stack.enter_context(context)
            except UserError as error:
                trouble = str(error)
        if found := from_first("on_first", trouble):
            raise UserError(found)
        yield


def same_everywhere(fields: dict[str, Any]) -> None:
    """Checks that fields are the same on all processes.

    Raises:
      UserError: they are not; the first process that differs and its first field are named.
    """
    told = from_all("same", fields)
    for number, theirs in enumerate(told):
        for name in told[0] | theirs:
            first, other = told[0].get(name), theirs.get(name)
            if first != other:
                raise UserError(
                    f"host {number} differs from host 0 in {name}: {other} there, {first} on "
                    "host 0; start all hosts with the same command, code and data"
                )


def directory(key: str) -> dict[int, Any]:
    """What the processes have set below a key, by their numbers."""
    found = service().client.key_value_dir_get(f"{key}/")
    return {int(key.rpartition("/")[2]): json.loads(value) for key, value in found}


def new_key(name: str) -> str:
    """A key for what processes say under a name now; all of them count their calls alike."""
    _counts[name] = _counts.get(name, 0) + 1
    return f"{ROOT}/{name}/{_counts[name]}"


def _wait_for(key: str) -> str:
    """The value of a key; the watch ends this process if the one that should set it is gone."""
    while True:
        try:
            return service().client.blocking_key_value_get(key, 10_000)
        except Exception as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
