"""The device mesh and how arrays lie on it."""

from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

Tree = TypeVar("Tree")


def create_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A one-dimensional mesh over these `jax.devices()`, by default all, with axis "data"."""
    return Mesh(np.asarray(devices or jax.devices()), ("data",))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, P())


def over_data(mesh: Mesh, axis: int) -> NamedSharding:
    """The given axis split over the devices."""
    return NamedSharding(mesh, P(*[None] * axis, "data"))


def put(tree: Tree, sharding: NamedSharding) -> Tree:
    """Place every array of a tree."""
    return jax.device_put(tree, sharding)


def place(state: Tree, mesh: Mesh) -> Tree:
    """Place a method's variables: those cut into shards over the devices, the others on each.

    What is cut into a number of shards that the devices cannot split evenly is on each as well.
    """

    def put_variable(variable: nnx.Variable) -> nnx.Variable:
        axis = variable.get_metadata().get("shard_axis")
        if axis is None or variable.shape[axis] % mesh.size:
            return put(variable, replicated(mesh))
        return put(variable, over_data(mesh, axis))

    return jax.tree.map(put_variable, state, is_leaf=lambda node: isinstance(node, nnx.Variable))


def padding(size: int, mesh: Mesh) -> int:
    """How many rows must be added for the mesh to split `size` rows evenly."""
    return -size % mesh.size
