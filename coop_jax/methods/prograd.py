"""ProGrad: CoOp that does not learn against zero-shot CLIP (Zhu et al., ICCV 2023)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from coop_jax.clip import CLIP
from coop_jax.errors import InputError
from coop_jax.methods import text
from coop_jax.methods.base import Batch, Fixed, Given, Terms, cross_entropy, weighted_mean

NAME = "ProGrad"
PAPER = "Zhu et al., ICCV 2023"

TEMPLATES = {
    "a photo of a {}, a type of pet.": "a type of pet, a photo of a {}.",
    "a photo of a {}, a type of flower.": "a type of flower, a photo of a {}.",
    "a photo of a {}, a type of aircraft.": "a type of aircraft, a photo of a {}.",
    "a photo of {}, a type of food.": "a type of food, a photo of {}.",
    "{} texture.": "a texture of {}.",
}
"""CoOp's hand-crafted prompts that ProGrad turns round, so that the class name ends them."""

LIMITS = {"temperature": (1e-6, 1e6)}


def default_config() -> dict[str, Any]:
    """Return ProGrad's settings, those of its official scripts.

    Settings:
        n_ctx: number of context vectors M.
        class_specific: one context per class (CSC), where `from_template` is false.
        from_template: start the context with the token embeddings of the hand-crafted prompt's
            words in front of the class name, after vectors of zeros; else normal with deviation
            0.02. As in the official code only the first tokens are learned, as many as there are
            words; where a comma makes them more, the others stay in the prompt.
        template: the hand-crafted prompt, with {} for the class name (empty: the dataset's own,
            turned round as the official code has it so that the class name ends it).
        projection: how much of the cross-entropy's gradient is taken away that is against the
            distillation's; 1 is all of it.
        temperature: of the distillation.
    """
    return {
        "n_ctx": 16,
        "class_specific": False,
        "from_template": True,
        "template": "",
        "projection": 1.0,
        "temperature": 1.0,
    }


def recipe() -> dict[str, Any]:
    """Return what the official scripts train with: 100 epochs."""
    return {"epochs": 100}


class Method(text.Prompted):
    """CoOp whose gradient is projected where it is against that of distilling zero-shot CLIP.

    `bank` holds the text features of zero-shot CLIP.
    """

    def __init__(self, given: Given, config: dict[str, Any]):
        template = config["template"] or TEMPLATES.get(given.template, given.template)
        n_ctx = config["n_ctx"]
        self.context, self.prompts = text.learned_prompts(
            given,
            n_ctx,
            context_init=_words(template, n_ctx) if config["from_template"] else "",
            class_specific=config["class_specific"],
            at_least=n_ctx,
        )
        self.bank = Fixed(text.hand_crafted_features(given, template))
        self.projection, self.temperature = config["projection"], config["temperature"]

    def losses(self, clip: CLIP, texts: Float[Array, "classes embedding"], batch: Batch) -> Terms:
        """Return the cross-entropies with the labels and with zero-shot CLIP's probabilities."""
        logits = self.logits(clip, texts, batch.images)
        teacher = self.logits(clip, self.bank[...], batch.images)
        distillation = optax.softmax_cross_entropy(
            logits / self.temperature, jax.nn.softmax(teacher / self.temperature)
        )
        return {
            "cross_entropy": cross_entropy(logits, batch.labels, batch.weights),
            "distillation": self.temperature**2 * weighted_mean(distillation, batch.weights),
        }

    def gradient(
        self, terms: Callable[[Any], tuple[Terms, Any]], learned: Any
    ) -> tuple[Terms, Any, Any]:
        """Return the cross-entropy's gradient without what is against the distillation's.

        Where the two of a variable point into opposite directions, the component along the
        distillation's is taken away; else the distillation has no influence at all.
        """
        values, pull, kept = jax.vjp(terms, learned, has_aux=True)
        zeros = {name: jnp.zeros_like(value) for name, value in values.items()}

        def of(name: str) -> Any:
            return pull({**zeros, name: jnp.ones_like(values[name])})[0]

        def project(gradient: Array, general: Array) -> Array:
            direction = jnp.asarray(general, jnp.float32)
            direction /= jnp.maximum(jnp.linalg.norm(direction), jnp.finfo(jnp.float32).tiny)
            along = jnp.minimum(jnp.sum(gradient * direction), 0)
            return (gradient - self.projection * along * direction).astype(gradient.dtype)

        return values, kept, jax.tree.map(project, of("cross_entropy"), of("distillation"))


def _words(template: str, n_ctx: int) -> str:
    """Return what stands in front of the class name.

    Raises:
        InputError: that are no words, or more than there are context vectors.
    """
    words = template.split("{}")[0].split()
    if not words or len(words) > n_ctx:
        raise InputError(
            f"expected a hand-crafted prompt with 1 to {n_ctx} words (n_ctx) in front of the class"
            f" name, which start the context, got {template!r:.80}; set another template, a higher"
            " n_ctx, or from_template=False"
        )
    return " ".join(words)
