"""Every method in the protocols that evaluate on other classes than it was trained on."""

import json

import pytest
from makers import SMALL, image_folder

from coop_jax import methods, presets, protocols
from coop_jax.errors import InputError

TRANSFER = ("cross_dataset", "domain_generalization")

BOUND = {
    *("ape", "ape_t", "clap", "cross_modal", "cross_modal_adapter", "linear_probe", "lp_plus_plus"),
    *("proker", "taskres", "tfup", "tfup_t", "tip_adapter", "tip_adapter_f", "tip_x", "transclip"),
}
"""Methods that serve none but the classes that they were trained on."""

pytestmark = pytest.mark.heavy


SHAPES = ("circle", "square", "a red star")


def config(name, protocol, folder, **changes):
    """One run of few steps."""
    found = presets.digits(name)
    if found["method"].get("sentences"):
        digits = json.loads(presets.DIGITS_SENTENCES.read_text())
        shapes = {shape: [f"a drawing of {shape}."] for shape in SHAPES}
        found["method"]["sentences"] = str(folder / "sentences.json")
        (folder / "sentences.json").write_text(json.dumps(digits | shapes))
    found["method"] |= {k: v for k, v in SMALL.get(name, {}).items() if k != "sentences"}
    quick = {"shots": (2,), "seeds": (1,), "max_steps": 1, "batch_size": 4, "loggers": ()}
    return found | {"protocol": protocol} | quick | changes


@pytest.mark.parametrize("name", sorted({*methods.available()} - {methods.ZERO_SHOT}))
def test_new_classes_are_classified_or_refused_at_once(name, tmp_path):
    folder = image_folder(tmp_path / "shapes", SHAPES, 2)
    chosen = {
        "base_to_new": config(name, "base_to_new", tmp_path, parts=("base", "new", "all")),
        **{
            protocol: config(name, protocol, tmp_path, targets=(str(folder),))
            for protocol in TRANSFER
        },
    }
    for protocol, each in chosen.items():
        workdir = tmp_path / protocol
        if name in BOUND:
            with pytest.raises(InputError, match="expected only classes that were"):
                protocols.run(each, workdir)
            assert not (workdir / "results.jsonl").exists()
            continue
        rows = [row for row in protocols.run(each, workdir)[2] if row.method == name]
        found = [(row.dataset, row.split, row.n_classes) for row in rows]
        if protocol == "base_to_new":
            sizes = {"base": 5, "new": 5, "all": 10}
            assert found == [("digits", part, size) for part, size in sizes.items()]
        else:
            assert [place[:2] for place in found] == [("digits", "test"), ("shapes", "test")]
            assert found[1][2] == 3
