"""The fingerprint of a CLIP: the same from any file in any dtype, and another for any change."""

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_clip
from flax import nnx
from makers import OF_OPENAI, openai_tensors
from safetensors.numpy import save_file

from coop_jax import clip as clip_package
from coop_jax.clip import fingerprint, weights

MATRIX = "visual.transformer.resblocks.0.mlp.c_fc.weight"


class Tensors:
    """Tensors in memory, as the loader reads them."""

    def __init__(self, tensors):
        self.names, self.read = tensors.keys, tensors.__getitem__
        self.shape = lambda name: tensors[name].shape


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """A function that writes tensors with OpenAI's names to a file and loads it."""
    path = str(tmp_path_factory.mktemp("weights") / "clip.safetensors")

    def load_tensors(tensors, dtype=jnp.float32, **others):
        save_file(tensors, path)
        folder = clip_package.source.EMBEDDED_FOLDER
        return clip_package.load(path, tokenizer=folder, dtype=dtype, **OF_OPENAI | others)[0]

    return load_tensors


def test_it_depends_neither_on_the_dtype_nor_on_the_names_in_the_file(load):
    clips = [load(openai_tensors(), dtype) for dtype in (jnp.float32, jnp.bfloat16, jnp.float16)]
    same = Tensors(weights.transformers_tensors(clips[0]))
    config = clips[0].config
    clips.append(weights.build(same, config, jnp.float16, "another file"))
    clips.append(nnx.clone(clips[1]))
    assert len({fingerprint(clip) for clip in clips}) == 1


@pytest.mark.parametrize("vision", ["vit", "resnet"])
def test_every_kind_of_weight_counts(vision, tiny_tokenizer):
    clip = make_clip(tiny_tokenizer, vision)
    graph, state = nnx.split(clip)
    found, rng = {fingerprint(clip)}, np.random.default_rng(0)
    leaves = dict(nnx.to_flat_state(state))
    kinds = {(path[0], path[-1]): path for path in leaves}
    for path in kinds.values():
        leaf = leaves[path]
        values = np.array(leaf[...])
        place = tuple(rng.integers(values.shape))
        values[place] = np.nextafter(values[place], np.float32(np.inf))
        changed = nnx.from_flat_state({**leaves, path: leaf.replace(jnp.asarray(values))})
        found.add(fingerprint(nnx.merge(graph, changed)))
    assert len(found) == 1 + len(kinds) > 10


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_a_clip_that_was_tuned_is_another_in_any_dtype(dtype, load):
    """On disk by less than the dtype tells apart, in memory, or in what its weights mean."""
    original, tuned = openai_tensors(), openai_tensors()
    tuned[MATRIX][3, 5] = np.nextafter(tuned[MATRIX][3, 5], np.float32(np.inf))
    clips = [load(original, dtype), load(tuned, dtype), load(original, dtype, activation="gelu")]
    clips.append(nnx.clone(clips[0]))
    kernel = clips[-1].text.blocks.mlp_output.kernel
    kernel[...] = kernel[...].at[0, 2, 1].add(0.5)
    assert len({fingerprint(clip) for clip in clips}) == 4
