"""Prompts at several layers of both towers, which several methods learn."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from coop_jax.clip import CLIP
from coop_jax.clip.text import Deep
from coop_jax.errors import InputError
from coop_jax.methods import layers, text
from coop_jax.methods.base import Given, Images, Learned

LONGEST_PHRASE = 4
"""Vectors that a phrase starts at most; more are drawn (the official code of this family)."""

LIMITS = {"n_image_prompts": (0, 256)}


def default_config() -> dict[str, Any]:
    """Return the settings of prompts of their own in both towers.

    Settings:
        n_ctx: number of context vectors of the text tower.
        n_image_prompts: number of prompts of the vision tower.
        depth_text, depth_vision: layers of each tower that have prompts, from the first on.
        context_init: a phrase whose first `n_ctx` tokens start the context, if that are 4 or
            fewer; empty: normal with deviation 0.02, as all others.
    """
    return {
        "n_ctx": 4,
        "n_image_prompts": 4,
        "depth_text": 9,
        "depth_vision": 9,
        "context_init": "a photo of a",
    }


def check(given: Given, name: str, depths: dict[str, int]) -> None:
    """Refuse a CLIP without a vision transformer, or depths that the towers do not have.

    Args:
        given: what the method is made of.
        name: of the method.
        depths: the numbers of layers with prompts, by setting.

    Raises:
        InputError: one of these.
    """
    vision, words = layers.vision_config(given, name), given.clip.config.text.transformer
    for setting, depth in depths.items():
        most = (vision if "vision" in setting else words).layers
        if not 1 <= depth <= most:
            raise InputError(
                f"{name}: expected {setting} from 1 to {most}, the layers of that tower, got"
                f" {depth}; correct it"
            )


def first_context(
    given: Given, phrase: str, n_ctx: int
) -> tuple[Float[Array, "context width"], text.Prompts]:
    """Return a context that starts as a phrase's first tokens, and the prompts that hold it.

    Of a longer phrase the other words stay in the prompts. Without a phrase, or of more than
    `LONGEST_PHRASE` vectors, the context is normal with deviation 0.02.

    Raises:
        InputError: there would be no vector, or a phrase has fewer tokens.
    """
    if not phrase or n_ctx > LONGEST_PHRASE:
        context, placeholder = text.initial_context(given, "", n_ctx)
        return context, text.Prompts(given, placeholder, n_ctx)
    words = text.embedded_words(given, phrase)
    if not 1 <= n_ctx <= len(words):
        raise InputError(
            f"expected from 1 to {len(words)} context vectors of the phrase {phrase!r:.80}, got"
            f" {n_ctx}; change n_ctx or context_init"
        )
    return words[:n_ctx], text.Prompts(given, phrase, n_ctx)


def normal(given: Given, *shape: int) -> Learned:
    """Return a variable drawn normal with deviation 0.02, float32."""
    return Learned(0.02 * jax.random.normal(given.rngs.params(), shape, jnp.float32))


def deeper(given: Given, depth: int, *shape: int) -> Learned | None:
    """Return prompts of the layers after the first, `[depth - 1, ...]`; None if there is none."""
    return normal(given, depth - 1, *shape) if depth > 1 else None


def at_layers(
    vectors: Float[Array, "deep n width"], count: int
) -> tuple[Float[Array, "layers n width"], Bool[Array, " layers"]]:
    """Return vectors of the layers from the second on as all layers have them, and where they are.

    Args:
        vectors: of the second layer, the third, and so on.
        count: of all layers.
    """
    number = jnp.arange(count)
    stacked = jnp.zeros((count, *vectors.shape[1:]), vectors.dtype)
    stacked = stacked.at[1 : 1 + len(vectors)].set(vectors)
    return stacked, (number >= 1) & (number <= len(vectors))


def deep_text(vectors: Learned | None, clip: CLIP) -> Deep | None:
    """Return what the text tower takes; None where only the first layer has prompts."""
    if vectors is None:
        return None
    return Deep(*at_layers(vectors[...], clip.config.text.transformer.layers))


def image_features(
    clip: CLIP,
    images: Images,
    prompts: Float[Array, "n width"],
    after_first: Float[Array, "deep n width"] | None,
) -> Float[Array, "batch embedding"]:
    """Return unnormalised features of images with prompts behind their patches.

    Args:
        clip: with a vision transformer.
        images: with pixels.
        prompts: of the first layer.
        after_first: of those after it.
    """
    vision: Any = clip.vision
    count = len(jax.tree.leaves(vision.blocks)[0])
    deep = None if after_first is None else at_layers(after_first, count)
    pixels = clip.normalized(jnp.asarray(images.pixels))
    return vision.pool(layers.prompted_tokens(vision, pixels, prompts, deep))


class TwoTowers(text.Prompted):
    """Prompts of their own in both towers, which replace the outputs of the layer before.

    Attributes:
        deep_context: of the text tower's layers after the first, `[depth - 1, n, width]`, or None.
        image_prompts: of the vision tower's first layer, `[n, width]`.
        deep_image_prompts: of those after it, or None.
    """

    takes = ("pixels",)

    def __init__(self, given: Given, config: dict[str, Any], name: str):
        depths = {key: config[key] for key in ("depth_text", "depth_vision")}
        check(given, name, depths)
        context, self.prompts = first_context(given, config["context_init"], config["n_ctx"])
        shape = config["n_image_prompts"], layers.vision_config(given, name).width
        self.context = Learned(context)
        self.deep_context = deeper(given, depths["depth_text"], *context.shape)
        self.image_prompts = normal(given, *shape)
        self.deep_image_prompts = deeper(given, depths["depth_vision"], *shape)

    def settings(self) -> dict[str, Any]:
        """Return nothing: all settings are as they were asked for."""
        return {}

    def texts(self, clip: CLIP, key: Array | None) -> Float[Array, "classes embedding"]:
        """Return unnormalised text features of the prompts."""
        deep = deep_text(self.deep_context, clip)
        return self.prompts.encode(clip, self.context[...], deep=deep)

    def image_features(self, clip: CLIP, images: Images) -> Float[Array, "batch embedding"]:
        """Return unnormalised image features with the prompts."""
        after_first = None if self.deep_image_prompts is None else self.deep_image_prompts[...]
        return image_features(clip, images, self.image_prompts[...], after_first)

    def logits(
        self, clip: CLIP, texts: Float[Array, "classes embedding"], images: Images
    ) -> Float[Array, "batch classes"]:
        """Return scaled cosine similarities, float32."""
        return clip.logits(self.image_features(clip, images), texts)
