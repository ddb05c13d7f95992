"""The device mesh and how arrays lie on it."""

import json
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from coop_jax.errors import InputError, MachineError
from coop_jax.printing import one_line

Tree = TypeVar("Tree")


def devices() -> list[Any]:
    """The devices that JAX uses.

    Raises:
        InputError: there are none of the platform that `JAX_PLATFORMS` names.
    """
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:  # for cuda, JAX fails with an assertion
        asked = os.environ.get("JAX_PLATFORMS", "")
        reason = one_line(error).partition(" (set JAX_PLATFORMS")[0] or "no such device"
        raise InputError(
            f"JAX_PLATFORMS: expected a platform that JAX finds here, got {asked!r:.80} (JAX says:"
            f" {reason:.200}); install what it needs, choose another, or unset JAX_PLATFORMS"
        ) from error


def create_mesh(chosen: Sequence[Any] | None = None) -> Mesh:
    """A one-dimensional mesh over these `jax.devices()`, by default all, with axis "data"."""
    return Mesh(np.asarray(chosen or devices()), ("data",))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, P())


def over_data(mesh: Mesh, axis: int) -> NamedSharding:
    """The given axis split over the devices."""
    return NamedSharding(mesh, P(*[None] * axis, "data"))


def put(tree: Tree, sharding: NamedSharding) -> Tree:
    """Place every array of a tree; every process has the whole of it."""
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)

    def put_leaf(leaf: Any) -> jax.Array:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return jax.device_put(leaf, sharding)
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, sharding, lambda part: whole[part])

    return jax.tree.map(put_leaf, tree)


def put_rows(rows: np.ndarray, mesh: Mesh) -> jax.Array:
    """Split rows over the devices; every process has those of its own devices, in order."""
    return jax.make_array_from_process_local_data(over_data(mesh, 0), rows)


def fetch(tree: Tree) -> Tree:
    """A tree of arrays as whole arrays of this process."""

    def fetch_leaf(leaf: jax.Array) -> jax.Array:
        if not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        return jnp.asarray(np.asarray(leaf))

    return jax.tree.map(fetch_leaf, tree)


def own_rows(size: int) -> slice:
    """Return which of `size` rows, split over the devices, are those of this process."""
    share = size // jax.process_count()
    return slice(jax.process_index() * share, (jax.process_index() + 1) * share)


def is_first() -> bool:
    """Tell whether this process is the one that writes and prints."""
    return jax.process_index() == 0


def wait(what: str) -> None:
    """Go on when every process has come here; `what` names the place."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def all_agree(value: bool) -> bool:
    """Tell whether it is true in every process; all have to ask."""
    return all_agree_each([value])[0]


def all_agree_each(values: Sequence[bool]) -> list[bool]:
    """Tell which values are true in every process; all have to ask, for as many."""
    if jax.process_count() == 1 or not values:
        return list(values)
    return multihost_utils.process_allgather(np.asarray(values)).all(axis=0).tolist()


def first_does(act: Callable[[], object], what: str) -> None:
    """Let the first process do something for all that train together; all have to ask.

    What fails there ends all of them, as none waits for one that has ended.

    Args:
        act: what is done.
        what: what errors of the other processes call it, e.g. "save".

    Raises:
        MachineError: it failed in the first process, where the error is the one that `act` raised.
    """
    problem: Exception | None = None
    if is_first():
        try:
            act()
        except Exception as error:
            problem = error
    if not all_agree(problem is None):
        raise problem or MachineError(
            f"expected the first process to {what}, got an error there; see what it says"
        )


def first_says(ask: Callable[[], Any], what: str) -> Any:
    """Return what the first process finds out; all have to ask.

    What lies on a network file system may look different to each, and they must do the same.

    Args:
        ask: returns what JSON can hold; is called in the first process alone.
        what: was to be found out, as `first_does` has it.

    Raises:
        MachineError: as `first_does`.
    """
    if jax.process_count() == 1:
        return ask()
    answer = b""

    def act() -> None:
        nonlocal answer
        answer = json.dumps(ask()).encode()

    first_does(act, what)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(answer))))
    said = np.frombuffer(answer.ljust(size, b" ")[:size], np.uint8)
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(said)).tobytes())


def place(state: Tree, mesh: Mesh) -> Tree:
    """Place a method's variables: those cut into shards over the devices, the others on each.

    A variable says along which axis it may be cut (`shard_axis`). If the devices cannot split that
    evenly, it is on each as well.
    """
    return _each_variable(lambda leaf: put(leaf, _sharding(leaf, mesh)), state)


def constrain(state: Tree, mesh: Mesh) -> Tree:
    """Within a compiled function, keep variables where `place` puts them."""
    return _each_variable(
        lambda leaf: jax.lax.with_sharding_constraint(leaf, _sharding(leaf, mesh)), state
    )


def _each_variable(change: Callable[[Any], Any], state: Tree) -> Tree:
    return jax.tree.map(change, state, is_leaf=lambda node: isinstance(node, nnx.Variable))


def _sharding(leaf: Any, mesh: Mesh) -> NamedSharding:
    metadata = leaf.get_metadata() if isinstance(leaf, nnx.Variable) else {}
    axis = metadata.get("shard_axis")
    if axis is None or leaf.shape[axis] % mesh.size:
        return replicated(mesh)
    return over_data(mesh, axis)


def padding(size: int, mesh: Mesh) -> int:
    """Return the number of rows to add for the mesh to split `size` rows evenly."""
    return -size % mesh.size
