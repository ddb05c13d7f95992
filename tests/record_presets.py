"""Write tests/data/presets.json anew, after a change of the presets that is meant.

python tests/record_presets.py
"""

import importlib.util
import json
from pathlib import Path

from coop_jax.data.official import FEW_SHOT
from coop_jax.run import paper_epochs

ROOT = Path(__file__).resolve().parents[1]
NAMES = (
    *(f"coop_few_shot:{dataset}" for dataset in FEW_SHOT),
    "coop_few_shot:imagenet,middle,m4",
    "coop_few_shot:dtd,middle,class_specific",
    "coop_few_shot:dtd,phrase",
    "coop_few_shot:imagenet,phrase",
    "coop_few_shot:dtd,vit_b16,float16",
    "coop_few_shot:dtd,rn101,front,m8",
    "coop_few_shot:dtd,vit_b32",
    *(f"linear_probe:{dataset}" for dataset in FEW_SHOT),
    *(f"linear_probe:dtd,{backbone}" for backbone in ("rn101", "vit_b32", "vit_b16,float16")),
    *(f"coop_prompt_ensembling:{words}" for words in ("rn50", "rn101", "vit_b32", "vit_b16")),
    "coop_prompt_ensembling:float16",
    "coop_domain_generalization:rn50",
    "coop_domain_generalization:rn101",
    "coop_domain_generalization:vit_b32,m4",
    "coop_domain_generalization:vit_b16,float16",
    "coop_domain_generalization:linear_probe",
    *(f"cocoop_base_to_new:{dataset}" for dataset in FEW_SHOT),
    "cocoop_base_to_new:dtd,coop,class_incremental",
    "cocoop_base_to_new:imagenet,coop,float16",
    "cocoop_cross_dataset:cocoop",
    "cocoop_cross_dataset:coop,float16",
    "cocoop_domain_generalization:cocoop",
    "cocoop_domain_generalization:coop,float16",
)


def resolve(name):
    """The config of a "file:argument", as `--config=configs/file.py:argument` gives it."""
    file, _, argument = name.partition(":")
    spec = importlib.util.spec_from_file_location(file, ROOT / "configs" / f"{file}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(argument).to_dict()


def snapshot(name):
    """The config as JSON, with the epochs that come of it for each number of shots."""
    config = resolve(name)
    if config["method"]["name"] == "linear_probe":
        epochs = {}
    else:
        epochs = {
            s: config["epochs"] or paper_epochs(s, config["dataset"]) for s in config["shots"]
        }
    return json.loads(json.dumps({"epochs of shots": epochs, **config}))


def small(name, data, **changes):
    """The same, cut down to what a test can wait for."""
    config = resolve(name)
    config["clip"]["name"] = "tiny"
    return config | {"data_dir": str(data), "shots": (2,), "seeds": (1,), "epochs": 1} | changes


if __name__ == "__main__":
    path = Path(__file__).parent / "data" / "presets.json"
    path.write_text(json.dumps({name: snapshot(name) for name in NAMES}, indent=1) + "\n")
