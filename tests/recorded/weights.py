"""Methods that learn weights or blocks of the towers (reference methods_deep.md)."""

import operator
import re
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from coop_jax import evaluate, methods, train
from coop_jax.classes import Classes
from coop_jax.methods import Images, Stage, layers
from coop_jax.methods.clip_lora import LOGIT_SCALE, PARTS
from coop_jax.optim import OptimizerConfig
from recorded.case import Case, Parameter, checks, compare_logits, relative, trajectory

LORA = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.attn\.(\w+?)(?:_proj)?\.w_lora_(\w)")


class RecordedMasks:
    """In place of `layers.Dropout`: the masks that a step of the case had."""

    def __init__(self, case: Case, key: jax.Array, count: int, rate: float, parts: tuple[str, ...]):
        del count
        words = jnp.asarray(train.step_keys(0, len(case["order"])))
        keys = jax.vmap(lambda w: jax.random.fold_in(train.keys_of(w)[0], 0))(words)
        step = jnp.argmax((jax.random.key_data(keys) == jax.random.key_data(key)).all(axis=-1))
        masks = []
        for number in range(len(case.under("dropout_mask"))):
            shape = case[f"dropout_mask_shape/{number}"].tolist()
            bits = np.unpackbits(case[f"dropout_mask/{number}"], axis=-1)[:, : np.prod(shape)]
            masks.append(bits.reshape(-1, *shape).swapaxes(1, 2))
        own = jnp.asarray(np.stack(masks, axis=1))[step]
        self.masks = own.reshape(-1, len(masks) // self.layers(masks, case), *own.shape[1:])
        self.rate, self.parts = rate, parts

    @staticmethod
    def layers(masks: list[np.ndarray], case: Case) -> int:
        """Return the number of layers, each of which has a mask for every part that learns."""
        return len(masks) // len(case.meta["params"])


def lora_parameters(case: Case) -> dict[str, Parameter]:
    """Return where the recorded matrices are here."""
    found = {}
    for name in case.under("init"):
        match = LORA.fullmatch(name)
        assert match is not None, name
        visual, layer, letter, side = match.groups()
        part = PARTS[{"proj": "o", "out": "o"}.get(letter, letter[0])]
        path = f"{'down' if side == 'A' else 'up'}.{part}"
        tower = "vision" if visual else "text"
        found[name] = Parameter(f"factors.{tower}.{path}", int(layer), transposed=True)
    return found


@checks("clip_lora")
def clip_lora(case: Case) -> None:
    meta = case.meta
    # Without dropout the official code draws gradients back through weights that lack the updates:
    # what it does there is not to be matched, but for the first steps, where these are zero.
    tolerance = 5e-3 if meta["dropout_rate"] == 0 else 1e-4
    rate = meta["dropout_rate"] if "dropout_mask/0" in case else 0.0
    settings = {
        "encoder": meta["encoder"],
        "params": tuple(meta["params"]),
        "rank": meta["r"],
        "alpha": float(meta["alpha"]),
        "dropout": float(rate),
    }
    method = case.create("clip_lora", **settings, templates=tuple(meta["template"]))
    pixels = case.pixels()
    features = case.features() if meta["encoder"] == "text" else None

    def images(places: np.ndarray) -> Images:
        if features is not None:
            return Images(features=features[places])
        return Images(pixels=pixels[places])

    optimizer = OptimizerConfig(
        name="adamw",
        learning_rate=meta["lr"],
        weight_decay=1e-2,
        schedule_by="step",
        warmup_epochs=0,
        final_learning_rate=1e-6,
    )
    given = mock.patch.object(layers, "Dropout", lambda *a: masked(case, *a))
    with given:
        trajectory(
            case,
            method,
            lora_parameters(case),
            Stage(optimizer=optimizer),
            lambda wanted: images(wanted[:, 1]),
            epochs=1,
            tolerance=tolerance,
        )
    # The official evaluation takes the first template alone, whatever training took.
    tested = case.create("clip_lora", **settings, templates=tuple(meta["template"][:1]))
    for name, variable in methods.saved(method).items():
        operator.attrgetter(name)(tested)[...] = variable[...]
    logits = evaluate.logits(tested, case.clip, images(np.arange(len(pixels))), case.mesh)
    assert relative(logits / LOGIT_SCALE, case["eval_logits"]) < max(3e-5, tolerance / 10)


def masked(case: Case, *given: object) -> object:
    """Return recorded masks as a module that the towers take."""
    from flax import nnx

    recorded = RecordedMasks(case, *given)  # pyright: ignore[reportArgumentType]

    class Masks(nnx.Module):
        def __init__(self):
            self.kept = nnx.Variable(recorded.masks)

        def __call__(self, x: jax.Array, part: str) -> jax.Array:
            names = [PARTS[letter] for letter in case.meta["params"]]
            kept = self.kept[...][names.index(part)]
            return jnp.where(kept == 1, x / (1 - recorded.rate), 0)

    return Masks()


@checks("mma")
def mma(case: Case) -> None:
    meta = case.meta
    first = meta["adapter_start"]
    settings = {
        "first": first,
        "last": meta["adapter_end"],
        "dim": meta["adapter_dim"],
        "scale": float(meta["adapter_scale"]),
        "template": meta["template"],
    }
    method = case.create("mma", **settings)
    parameters = {}
    for name in case.under("init"):
        tower, layer, *inner = name.removeprefix("adapter_learner.").split(".")
        kind, last = tower.split("_")[0], inner[-1]
        path = (
            "shared" if kind == "shared" else f"{inner[0]}.{'text' if kind == 'text' else 'vision'}"
        )
        leaf = "kernel" if last == "weight" else "bias"
        parameters[name] = Parameter(f"{path}.{leaf}", int(layer) - first, last == "weight")
    pixels = case.pixels()
    rate = float(re.search(r"lr=([\d.e-]+)", meta["optimizer"]).group(1))
    stage = Stage(optimizer=OptimizerConfig(learning_rate=rate, warmup_epochs=0))
    trajectory(case, method, parameters, stage, lambda wanted: Images(pixels=pixels[wanted[:, 1]]))
    images = Images(pixels=pixels)
    compare_logits(case, method, images)
    new = tuple(meta["new_classnames"])
    fresh = case.create("mma", new, **settings)
    trained = Classes(tuple(meta["classnames"]))
    moved = methods.move(method, fresh, trained, Classes(new).moved_from(trained))
    compare_logits(case, moved, images, "eval_logits_new")
