"""Methods that learn prompts inside the towers (reference methods_deep.md)."""

import jax.numpy as jnp
import numpy as np

from coop_jax.clip import unit
from coop_jax.methods import Images, Stage
from coop_jax.optim import OptimizerConfig
from recorded.case import Case, Parameter, checks, compare_logits, relative, trajectory

BLOCK = "{}_encoder.transformer.resblocks.{}.VPT_shallow"


def deep_names(case: Case, tower: str) -> list[str]:
    """Return the recorded names of a tower's prompts after the first layer, in order."""
    names = (BLOCK.format(tower, layer) for layer in range(1, 100))
    return [name for name in names if f"init/{name}" in case]


def two_towers(case: Case) -> tuple[dict, dict[str, Parameter]]:
    """Return the settings of IVLP, and where the recorded parameters are."""
    deep_text, deep_image = deep_names(case, "text"), deep_names(case, "image")
    settings = {
        "n_ctx": len(case["init/prompt_learner.ctx"]),
        "n_image_prompts": len(case["init/image_encoder.VPT"]),
        "depth_text": len(deep_text) + 1,
        "depth_vision": len(deep_image) + 1,
        "context_init": case.meta.get("ctx_init") or "",
    }
    parameters = {
        "prompt_learner.ctx": Parameter("context"),
        "image_encoder.VPT": Parameter("image_prompts"),
        **{name: Parameter("deep_context", i) for i, name in enumerate(deep_text)},
        **{name: Parameter("deep_image_prompts", i) for i, name in enumerate(deep_image)},
    }
    return settings, parameters


def optimizer(case: Case) -> OptimizerConfig:
    """Return Dassl's, with the rate of the case."""
    return OptimizerConfig(learning_rate=case.meta.get("lr") or float(case["lr"].max()))


@checks("ivlp")
def ivlp(case: Case) -> None:
    settings, parameters = two_towers(case)
    method, pixels = case.create("ivlp", **settings), case.pixels()
    if settings["context_init"] and settings["n_ctx"] <= 4:
        np.testing.assert_array_equal(method.context[...], case["init/prompt_learner.ctx"])
    stage = Stage(optimizer=optimizer(case))
    images_of = lambda wanted: Images(pixels=pixels[wanted[:, 1]])  # noqa: E731
    trajectory(case, method, parameters, stage, images_of)
    compare_logits(case, method, Images(pixels=pixels))


@checks("maple")
def maple(case: Case) -> None:
    layers = range(len([name for name in case.under("init") if "prompts_text" in name]))
    deep, maps = "prompt_learner.compound_prompts_text.{}", "compound_prompt_projections"
    parameters = {
        "prompt_learner.ctx": Parameter("context"),
        "prompt_learner.proj.weight": Parameter("coupling.kernel", 0, transposed=True),
        "prompt_learner.proj.bias": Parameter("coupling.bias", 0),
    }
    for layer in layers:
        name = f"prompt_learner.{maps}.{layer}"
        parameters[deep.format(layer)] = Parameter("deep_context", layer)
        parameters[f"{name}.weight"] = Parameter("deep_coupling.kernel", layer, transposed=True)
        parameters[f"{name}.bias"] = Parameter("deep_coupling.bias", layer)
    settings = {
        "n_ctx": len(case["init/prompt_learner.ctx"]),
        "depth": len(layers) + 1,
        "context_init": case.meta.get("ctx_init") or "",
    }
    method, pixels = case.create("maple", **settings), case.pixels()
    images_of = lambda wanted: Images(pixels=pixels[wanted[:, 1]])  # noqa: E731
    trajectory(case, method, parameters, Stage(optimizer=optimizer(case)), images_of)
    compare_logits(case, method, Images(pixels=pixels))


@checks("promptsrc")
def promptsrc(case: Case) -> None:
    settings, parameters = two_towers(case)
    meta = case.meta
    settings |= {
        "text_weight": float(meta["text_weight"]),
        "image_weight": float(meta["image_weight"]),
        "average_mean": float(meta["gpa_mean"]),
        "average_deviation": float(meta["gpa_std"]),
    }
    method = case.create("promptsrc", **settings)
    # The recorded mean is as it is before it is normalised.
    assert relative(method.bank[...], unit(jnp.asarray(case["fixed_embeddings"]))) < 1e-5
    pixels, features = case.pixels(), case.features()
    config = meta | {"optimizer": {"learning_rate": optimizer(case).learning_rate}}
    (stage,) = method.stages(config)
    if "gpa_weights" in case:
        np.testing.assert_allclose(method.average(meta["epochs"]), case["gpa_weights"], rtol=1e-5)

    def images_of(wanted: np.ndarray) -> Images:
        return Images(pixels=pixels[wanted[:, 1]], features=features[wanted[:, 1]])

    scaled = {
        "term/ce": ("cross_entropy", 1),
        "term/l1_text": ("text", meta["text_weight"]),
        "term/l1_image": ("image", meta["image_weight"]),
        "term/kl": ("logits", 1),
    }
    terms = {name: term for name, (term, _) in scaled.items() if name in case}
    for name in terms:
        case.arrays[name] = case[name] * scaled[name][1]
    trajectory(case, method, parameters, stage, images_of, terms=terms)
    compare_logits(case, method, Images(pixels=pixels, features=features))
