"""A prompt with its CLIP, on all devices: what it takes to use it."""

import functools
import logging
from collections.abc import Sequence
from typing import Any

from flax import nnx

from coop_jax import clip as clip_package
from coop_jax import parallel
from coop_jax.clip import source
from coop_jax.clip.config import DTYPES
from coop_jax.data import catalog
from coop_jax.errors import InputError
from coop_jax.prompts.prompt import Prompt

logger = logging.getLogger(__name__)


def apply(
    learned: Prompt,
    clip: str | None = None,
    *,
    dtype: str,
    tokenizer: str = "",
    class_names: Sequence[str] | None = None,
    class_ids: Sequence[str] | None = None,
    repeated: Sequence[str] = (),
) -> tuple[Any, clip_package.CLIP, clip_package.Tokenizer]:
    """The method of a prompt, ready for these classes, and its CLIP on all devices.

    Args:
        learned: the prompt.
        clip: its CLIP, where that has another name or place here.
        dtype: of the CLIP.
        tokenizer: folder of the tokenizer files, where they do not lie beside the weights.
        class_names: as in `Prompt.for_classes`, like `class_ids` and `repeated`.
        class_ids: see there.
        repeated: see there.

    Raises:
        InputError: no such CLIP or another than the prompt's, or classes that do not fit.
    """
    model, its_tokenizer = load_its_clip(learned, clip, dtype=dtype, tokenizer=tokenizer)
    method = learned.for_classes(
        model,
        its_tokenizer,
        class_names,
        class_ids=class_ids,
        repeated=repeated,
        backbone=clip or learned.backbone,
        shards=parallel.create_mesh().size,
    )
    return method, model, its_tokenizer


def load_its_clip(
    learned: Prompt, clip: str | None = None, *, dtype: str, tokenizer: str = ""
) -> tuple[clip_package.CLIP, clip_package.Tokenizer]:
    """The CLIP that a prompt names, or another name for it, and its tokenizer; not yet compared.

    Raises:
        InputError: there is none of that name here, or JAX finds no device.
    """
    parallel.devices()
    try:
        return load_clip(clip or learned.backbone, dtype, tokenizer)
    except InputError as error:
        if clip:
            raise
        raise InputError(
            f"expected the CLIP that this prompt was learned with, {learned.backbone}, got none"
            f" that loads by that name ({error}); say where it is by --clip or clip="
        ) from error


@functools.lru_cache(maxsize=1)
def load_clip(
    name: str, dtype: str, tokenizer: str
) -> tuple[clip_package.CLIP, clip_package.Tokenizer]:
    """A CLIP on all devices; the last one stays, so that fits in a row load it once.

    Raises:
        InputError: there is none of that name, or its files cannot be used.
    """
    whole = parallel.replicated(parallel.create_mesh())
    model, its_tokenizer = clip_package.load(name, dtype=DTYPES[dtype], tokenizer=tokenizer or None)
    nnx.update(model, parallel.put(nnx.state(model), whole))
    return model, its_tokenizer


def warn_of_embedded_clip(name: str, dataset: str | None) -> None:
    """Say, once in a process, what the embedded CLIP cannot do, unless the images are the digits.

    Args:
        name: of a CLIP.
        dataset: the name of what it is used on; None where it has none.
    """
    if name == source.EMBEDDED and dataset != catalog.DIGITS:
        _warn_of_embedded_clip()


@functools.cache
def _warn_of_embedded_clip() -> None:
    logger.warning(
        "the CLIP %r knows printed digits, letters and simple shapes alone and has seen no"
        " photograph: use it to try things out, and another, e.g. ViT-B/16, for images of anything"
        " else",
        source.EMBEDDED,
    )
