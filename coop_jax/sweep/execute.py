"""Run groups, in this process or as tasks of a Ray cluster."""

import contextlib
import logging
import os
import platform
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from coop_jax.errors import InputError, MachineError
from coop_jax.printing import one_line
from coop_jax.sweep.groups import FINISHED_FILE, Group
from coop_jax.terminal import messages
from coop_jax.writing import said, write_whole

logger = logging.getLogger(__name__)


class Outcome(NamedTuple):
    """The end of a group; `failure` says in one line why it did not come to it."""

    group: Group
    failure: str | None


def run_group(group: Group, here: str = ".") -> str | None:
    """Run a group from where an earlier process left it; what was wrong with the input, if it was.

    Args:
        group: what to run.
        here: the folder that relative paths begin at, if this machine has it.

    Raises:
        MachineError: the machine failed.
    """
    from coop_jax import protocols

    with contextlib.suppress(OSError):
        os.chdir(here)
    with messages(group.log):
        logger.info("%s: process %d on %s", group.name, os.getpid(), platform.node())
        try:
            rows = protocols.run(group.config, group.folder)[2]
        except InputError as error:
            logger.error("%s", one_line(error))
            return one_line(error)
        except MachineError as error:
            logger.error("%s", one_line(error))
            raise
        except Exception:
            logger.exception("%s crashed", group.name)
            raise
    finished = group.folder / FINISHED_FILE
    with said("write", finished):
        write_whole(finished, group.end(rows).encode())
    return None


def in_this_process(groups: Iterable[Group]) -> Iterator[Outcome]:
    """Run the groups one after the other."""
    for group in groups:
        try:
            failure = run_group(group)
        except Exception as error:
            failure = _describe(error)
        yield Outcome(group, failure)


def on_ray(
    groups: Iterable[Group], address: str, needs: Mapping[str, float], retries: int
) -> Iterator[Outcome]:
    """Connect to Ray, and run each group as a task of it; outcomes as they come.

    Args:
        groups: what to run.
        address: a cluster's, as `ray.init` takes it; "" for this machine's, started if it has none.
        needs: what a group needs, in Ray's names for resources.
        retries: how often a group is tried again after a crash; bad input is not tried again.

    Raises:
        InputError: Ray is not installed, or there is no cluster at the address.
    """
    ray = _connect(address)
    _warn_about_nodes([node["Resources"] for node in ray.nodes() if node["Alive"]], needs)
    # A process frees its accelerator only by ending: one call each.
    task = ray.remote(
        num_cpus=needs["CPU"],
        num_gpus=needs["GPU"],
        resources={key: needs[key] for key in needs if key not in ("CPU", "GPU")},
        max_retries=retries,
        retry_exceptions=True,
        max_calls=1,
    )(run_group)
    return _follow(ray, groups, task)


def _follow(ray: Any, groups: Iterable[Group], task: Any) -> Iterator[Outcome]:
    """Start the task for every group, and wait for them all."""
    here = os.getcwd()
    try:
        started = {task.options(name=group.name).remote(group, here): group for group in groups}
        while started:
            (done, *_), _ = ray.wait(list(started), num_returns=1)
            try:
                failure = ray.get(done)
            except ray.exceptions.RayError as error:
                failure = _describe(getattr(error, "cause", None) or error)
            yield Outcome(started.pop(done), failure)
    finally:
        ray.shutdown()


def _connect(address: str) -> Any:
    """The module ray, connected."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise InputError(
            "expected the package ray for --ray, got none; pip install 'coop_jax[ray]'"
        ) from error
    try:
        host, _, port = address.removeprefix("ray://").rpartition(":")
        if host:
            # Ray itself would wait for minutes.
            socket.create_connection((host, int(port)), timeout=20).close()
        ray.init(address or None, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError) as error:
        raise InputError(
            f"expected the address of a Ray cluster, got --ray={address} ({one_line(error)});"
            " give the HOST:PORT of `ray start --head`, and set the cluster's RAY_AUTH_MODE and"
            " RAY_AUTH_TOKEN here if it has them, or choose --ray=local"
        ) from error
    return ray


def _warn_about_nodes(nodes: Sequence[Mapping[str, float]], needs: Mapping[str, float]) -> None:
    """Say what Ray is silent about: groups that wait for ever, accelerators that stay idle."""
    if not any(all(node.get(key, 0) >= needs[key] for key in needs) for node in nodes):
        wanted = ", ".join(f"{key} {amount:g}" for key, amount in needs.items() if amount)
        logger.warning("no node has %s: groups wait until one joins the cluster", wanted)
    for kind, option in (("GPU", "--gpus=1"), ("TPU", "--resource TPU=4")):
        if any(node.get(kind) for node in nodes) and not needs.get(kind):
            logger.warning("the cluster has a %s, but groups are given none: add %s", kind, option)


def _describe(error: BaseException) -> str:
    if isinstance(error, MachineError):
        return one_line(error)
    return f"{type(error).__name__}: {one_line(error)}"
