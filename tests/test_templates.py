"""The published ensembles, and the prompts that a config's entries ask for."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coop_jax.data.templates import IMAGENET_7, IMAGENET_80, NAMED, prompt_sets
from coop_jax.errors import InputError

OWN = "a photo of a {}, a type of pet."
SEVEN, EIGHT = "7 ImageNet templates", "7 ImageNet templates and the dataset's"


def test_the_published_ensembles():
    assert len(set(IMAGENET_7)) == 7 and len(set(IMAGENET_80)) == 80
    assert set(IMAGENET_7) < set(IMAGENET_80)
    assert all(template.count("{}") == 1 for template in IMAGENET_80)
    # Of the 80 lines in OpenAI's CLIP notebook and in CoOp's trainers/imagenet_templates.py.
    digest = hashlib.sha256("\n".join(IMAGENET_80).encode()).hexdigest()
    assert digest == "4f976686fb651bb5803d4689dcd849f75efe0ef19a3c801355bc9a6f03c8a5af"


@pytest.mark.parametrize("entries", [(), ("dataset",), ("dataset", OWN)])
def test_the_datasets_own_prompt_is_the_default(entries):
    assert prompt_sets(entries, OWN, "pets") == {OWN: (OWN,)}


def test_single_prompts_then_their_ensemble_then_the_published_ones():
    found = prompt_sets(("imagenet_80", "a {}.", "imagenet_7", "dataset"), OWN, "pets")
    assert list(found.items()) == [
        ("a {}.", ("a {}.",)),
        (OWN, (OWN,)),
        ("ensemble of 2", ("a {}.", OWN)),
        ("80 ImageNet templates", IMAGENET_80),
        (EIGHT, (*IMAGENET_7, OWN)),
    ]


@pytest.mark.parametrize(
    ("dataset", "own", "name"),
    [
        ("imagenet", "a photo of a {}.", SEVEN),
        ("imagenet_v2", "a photo of a {}.", EIGHT),
        ("pets", "itap of a {}.", SEVEN),
    ],
)
def test_the_datasets_own_joins_the_seven_elsewhere_than_on_imagenet(dataset, own, name):
    expected = IMAGENET_7 if name == SEVEN else (*IMAGENET_7, own)
    assert prompt_sets(("imagenet_7",), own, dataset) == {name: expected}


@given(st.lists(st.sampled_from((*NAMED, "a {}.", "the {}.", OWN, IMAGENET_7[0]))))
def test_nothing_comes_twice(entries):
    found = prompt_sets(entries, OWN, "pets")
    assert found and len(set(found.values())) == len(found)
    assert all(len(set(templates)) == len(templates) for templates in found.values())
    assert found == prompt_sets([*entries, *entries], OWN, "pets")


def test_unknown_entries():
    expected = "any of dataset, imagenet_7, imagenet_80, got 'imagenet', 'a photo'; "
    with pytest.raises(InputError, match=expected):
        prompt_sets(("imagenet", "a {}.", "a photo"), OWN, "pets")
