"""Saved methods to and from the Hugging Face hub, with a model card made from their record."""

import os
import re
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coop_jax import writing
from coop_jax.classes import spelled
from coop_jax.clip import source
from coop_jax.errors import InputError
from coop_jax.saved import files, seen

if TYPE_CHECKING:
    from huggingface_hub import HfApi

CARD = "README.md"
FILES = (files.RECORD, files.TENSORS, CARD)
ANY_REPOSITORY_HAS = ".gitattributes"


def is_id(name: str) -> bool:
    """Return whether this can be the id of a repository, "user/name"."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name, re.ASCII) is not None


def push(
    folder: str | Path, repository: str, *, private: bool = False, api: "HfApi | None" = None
) -> str:
    """Upload the folder of a saved method to a repository of the hub, a new one if there is none.

    The model card is the folder's `README.md` or, where there is none, made from the record.

    Args:
        folder: what `Saved.save` wrote.
        repository: "user/name"; a new one, or one with a saved method: then a new version is made,
            and the earlier ones stay in its history.
        private: make a new repository private; otherwise it is as the user or organisation has set.
        api: the hub's client, where its endpoint or token are not the usual ones.

    Returns:
        The address of the repository.

    Raises:
        InputError: the folder holds no saved method; the repository holds something else; the hub
            cannot be reached or does not let us in; a private one is wanted where a public one is.
    """
    folder = Path(os.path.expanduser(folder))
    record, tensors = files.read(folder)
    texts = tensors.get(f"{files.SPACE}texts")
    card = model_card(record, repository, embedding=0 if texts is None else texts.shape[-1])
    _check_id(repository)
    api = api or _api()
    try:
        address = api.create_repo(repository, private=private or None, exist_ok=True)
        others = set(api.list_repo_files(repository)) - {*FILES, ANY_REPOSITORY_HAS}
        is_public = private and not api.model_info(repository).private
    except Exception as error:  # its HTTP library's errors come through
        raise _refused(f"expected to write to {repository} on the hub", error) from error
    if others or is_public:
        found = "which is public" if is_public else f"with {', '.join(sorted(others)[:3])}"
        raise InputError(
            f"expected a new{' or private' * private} repository, or one with a saved method alone,"
            f" got {repository}, {found}; name another"
        )
    _upload(folder, card, f"{record['method']} for {record['backbone']}", repository, api)
    return str(address)


def _upload(folder: Path, card: str, message: str, repository: str, api: "HfApi") -> None:
    """Commit the files, with a card, to a repository."""
    from huggingface_hub import CommitOperationAdd

    contents: dict[str, Any] = {CARD: card.encode()}
    contents |= {name: folder / name for name in FILES if (folder / name).is_file()}
    try:
        api.create_commit(
            repository,
            [CommitOperationAdd(name, content) for name, content in contents.items()],
            commit_message=message,
        )
    except Exception as error:  # as above
        raise _refused(f"expected to upload to {repository} on the hub", error) from error


def pull(repository: str, revision: str | None = None, *, api: "HfApi | None" = None) -> Path:
    """Return a folder with the files of a saved method on the hub, in the hub's cache.

    Args:
        repository: "user/name".
        revision: a branch, tag or commit; by default the latest of the main branch.
        api: the hub's client, where its endpoint or token are not the usual ones.

    Raises:
        InputError: there is no such repository, it holds no saved method, or the hub cannot be
            reached and the cache has none.
        MachineError: the cache cannot be written.
    """
    _check_id(repository)
    try:
        folder = (api or _api()).snapshot_download(
            repository, revision=revision, allow_patterns=list(FILES)
        )
    except Exception as error:  # as in push
        raise _refused(
            f"expected the folder of a saved method or a hub id, {repository}", error
        ) from error
    files.read(Path(folder))
    return Path(folder)


def model_card(record: Mapping[str, Any], repository: str, *, embedding: int = 0) -> str:
    """Return the text of a model card, in Markdown with the hub's front matter.

    Args:
        record: the keys of `files.FIELDS`.
        repository: where it will be, for the lines of Python that load it.
        embedding: the length of the features that were given instead of a CLIP; 0 with a CLIP.
    """
    from huggingface_hub import ModelCardData

    names = spelled(record["class_names"])
    backbone: str = record["backbone"]
    base = source.repository(backbone)
    data = ModelCardData(
        library_name="coop_jax",
        pipeline_tag=None if embedding else "zero-shot-image-classification",
        tags=[*([] if embedding else ["prompt-learning", "clip"]), record["method"]],
        base_model=base if is_id(base) else None,
    )
    reach = (
        "It serves these classes alone."
        if record["per_class"]
        else "What it has learned is shared by all classes, so that it can be used on others."
    )
    training = {key: value for key, value in record["training"].items() if key != seen.KEY}
    rows = {
        "method": record["method"],
        "backbone": backbone,
        "fingerprint of the backbone's weights": record["fingerprint"],
        **{f"setting {key}": value for key, value in record["settings"].items()},
        **dict(_flat(training)),
    }
    return CARD_TEXT.format(
        front_matter=data.to_yaml(),
        title=repository.split("/")[-1],
        method=record["method"],
        backbone=f"given features `{backbone}`" if embedding else f"the frozen CLIP `{backbone}`",
        imports="import numpy\n" if embedding else "",
        example=FEATURES.format(embedding) if embedding else PICTURE,
        count=len(names),
        classes=_cell(", ".join(names[:20]) + ", ..." * (len(names) > 20)),
        reach=reach,
        repository=repository,
        rows="\n".join(f"| {_cell(key)} | {_cell(value)} |" for key, value in rows.items()),
    )


PICTURE = 'print(classifier.predict(["photograph.jpg"]))'
FEATURES = """features = numpy.ones((1, {}), "float32")  # of images, by the same encoder
print(classifier.predict(features))"""
"""The line of Python that classifies, of pictures and of features."""

CARD_TEXT = """---
{front_matter}
---

# {title}

What the method `{method}` has learned for {backbone}, made with `coop_jax`. It
was learned on {count} classes: {classes}. {reach}

```python
{imports}from coop_jax import Classifier

classifier = Classifier.load("{repository}")
{example}
print(classifier.classes_)
```

| of the training | |
| --- | --- |
{rows}
"""


def _flat(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a record that fit into a cell, by the names that lead to them."""
    for key, value in record.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif not isinstance(value, list | tuple) or len(value) <= 5:
            yield prefix + key, value


def _cell(value: Any) -> str:
    """A value as one line that a Markdown table takes."""
    return " ".join(str(value).split()).replace("|", "\\|")


def _api() -> "HfApi":
    from huggingface_hub import HfApi

    return HfApi(library_name="coop_jax")


def _check_id(repository: str) -> None:
    if not is_id(repository):
        raise InputError(
            f"expected a repository of the hub as user/name, got {repository!r}; name it so"
        )


def _refused(expected: str, error: Exception) -> InputError:
    writing.raise_if_of_disk(error, "read and write the hub's cache")
    reason = textwrap.shorten(str(error) or type(error).__name__, 200, placeholder=" ...")
    return InputError(
        f"{expected}, got {reason}; check the name, the network and your token (hf auth login)"
    )
