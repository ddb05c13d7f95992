"""Write tests/data/presets.json anew, after a change of the presets that is meant.

python tests/record_presets.py
"""

import importlib.util
import json
from pathlib import Path

from coop_jax.data.official import FEW_SHOT

ROOT = Path(__file__).resolve().parents[1]
NAMES = (
    *(f"coop_few_shot:{dataset}" for dataset in FEW_SHOT),
    "coop_few_shot:imagenet,middle,m4",
    "coop_few_shot:dtd,middle,class_specific",
    "coop_few_shot:dtd,phrase",
    "coop_few_shot:dtd,vit_b16,float16",
    "linear_probe:dtd",
    "coop_prompt_ensembling:rn101",
    "coop_domain_generalization:rn50",
    "coop_domain_generalization:vit_b32,m4",
    "coop_domain_generalization:linear_probe",
    "cocoop_base_to_new:imagenet",
    "cocoop_base_to_new:dtd,coop,class_incremental",
    "cocoop_cross_dataset:cocoop",
    "cocoop_cross_dataset:coop",
    "cocoop_domain_generalization:cocoop",
    "cocoop_domain_generalization:coop",
)


def resolve(name):
    """The config of a "file:argument", as `--config=configs/file.py:argument` gives it."""
    file, _, argument = name.partition(":")
    spec = importlib.util.spec_from_file_location(file, ROOT / "configs" / f"{file}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(argument).to_dict()


def small(name, data, **changes):
    """The same, cut down to what a test can wait for."""
    config = resolve(name)
    config["clip"]["name"] = "tiny"
    return config | {"data_dir": str(data), "shots": (2,), "seeds": (1,), "epochs": 1} | changes


if __name__ == "__main__":
    path = Path(__file__).parent / "data" / "presets.json"
    path.write_text(json.dumps({name: resolve(name) for name in NAMES}, indent=1) + "\n")
