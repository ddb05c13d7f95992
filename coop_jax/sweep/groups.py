"""Groups of runs that share features: from the words of the command to checked configs."""

import contextlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from coop_jax import config_files, results
from coop_jax.errors import InputError
from coop_jax.printing import plural
from coop_jax.provenance import digest

GROUPS, LOGS, FEATURES = "groups", "logs", "features"
FINISHED_FILE = "finished"
"""In the workdir of a group that came to its end: `Group.end`."""


class Group(NamedTuple):
    """The runs of one config.

    Attributes:
        chosen: the word that named its file.
        config: its settings.
        workdir: the sweep's.
        among: what the file calls it, where it has several.
    """

    chosen: str
    config: dict[str, Any]
    workdir: Path
    among: str = ""

    @property
    def name(self) -> str:
        """A file name from the config's: coop_few_shot_dtd_middle, compare_digits_taskres."""
        file, _, argument = self.chosen.partition(":")
        if self.among:
            argument = f"{argument.partition(',')[0]} {self.among}"
        words = [Path(file).stem, *filter(None, re.split(r"[^\w.-]+", argument))]
        return "_".join(words)

    @property
    def folder(self) -> Path:
        """The workdir of its runs."""
        return self.workdir / GROUPS / self.name

    @property
    def log(self) -> Path:
        """The file of what its runs said, and of the traceback if one crashed."""
        return self.workdir / LOGS / f"{self.name}.txt"

    @property
    def is_finished(self) -> bool:
        """True where an earlier process came to its end, and all that came of it is still there."""
        finished, found = self.folder / FINISHED_FILE, self.folder / results.FILE_NAME
        if not (finished.is_file() and found.is_file()):
            return False
        return finished.read_bytes() == self.end(results.read(found)).encode()

    def end(self, found: Sequence[results.Result]) -> str:
        """Say what came to its end: this config, with so many results and saved methods."""
        from coop_jax.saved import Saved, files
        from coop_jax.workdir import FREE

        saved = sum(map(Saved.is_at, (self.folder / files.FOLDER).glob("*")))
        counted = f"{plural(len(found), 'result')} and {plural(saved, 'saved method')}"
        config = {key: value for key, value in self.config.items() if key not in FREE}
        return f"{counted} of the config {digest(config)}"


def plan(chosen: Sequence[str], settings: Sequence[str], workdir: Path) -> list[Group]:
    """The groups that the configs name, all of them checked; nothing is written.

    Raises:
        InputError: a config cannot run, two are the same, or the workdir belongs to others.
    """
    from coop_jax.workdir import LOCK_FILE

    entries = {entry.name for entry in workdir.iterdir()} if workdir.is_dir() else set()
    entries.discard(LOCK_FILE)
    if (workdir.exists() and not workdir.is_dir()) or (entries and GROUPS not in entries):
        raise InputError(
            f"expected --workdir as a new folder or an earlier sweep's, got {workdir}, which has"
            f" no folder {GROUPS}; name another"
        )
    groups: list[Group] = []
    earlier: dict[str, str] = {}
    for word in chosen:
        with _naming(word):
            for among, config in config_files.load_all(word, settings).items():
                if among and not config["feature_cache"]:
                    config["feature_cache"] = str(workdir / FEATURES)
                group = Group(word, config, workdir, among)
                _check(group)
                for key in (group.name, json.dumps(group.config, sort_keys=True)):
                    if key in earlier:
                        raise InputError(
                            "expected configs that differ, in file name or argument too, got the"
                            f" same as {earlier[key]}; name it once"
                        )
                    earlier[key] = word
                groups.append(group)
    return groups


@contextlib.contextmanager
def _naming(word: str) -> Iterator[None]:
    """Say which config an error is about."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{word}: {error}") from error


def _check(group: Group) -> None:
    """Refuse a config that cannot run, or whose workdir is another's."""
    from coop_jax import config as config_module
    from coop_jax import protocols, workdir

    try:
        config_module.check(group.config)
        protocols.check(group.config)
    except InputError as error:
        raise error.renamed(lambda name: f"--{name}") from None
    workdir.check(group.config, group.folder)


def open_inputs(groups: Iterable[Group]) -> None:
    """Open every dataset and find every CLIP once, so that what is missing is known at the start.

    What has to be fetched or prepared is so by one process, before many want it.

    Raises:
        InputError: something is missing.
    """
    from coop_jax.clip import source
    from coop_jax.data import catalog

    opened = set()
    for group in groups:
        config = group.config
        datasets = [(name, config["data_dir"], "") for name in config["targets"]]
        datasets.append((config["dataset"], config["data_dir"], config["class_names"]))
        clip = config["clip"]["name"], config["clip"]["tokenizer"]
        with _naming(group.chosen):
            for name, data_dir, class_names in set(datasets) - opened:
                catalog.load(name, data_dir or None, class_names or None)
            if clip not in opened:
                source.resolve(clip[0], clip[1] or None)
        opened |= {*datasets, clip}
