"""Files that tests make: image folders, CoOp's data in small, small checkpoints, a hub cache."""

import colorsys
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file
from tensorflow_datasets.core import tfds_path

from coop_jax.clip import source
from coop_jax.errors import InputError

DESCRIPTIONS = str(Path(__file__).parent / "data" / "descriptions.json")
"""Descriptions of the classes that tests have."""

SMALL = {
    "ape": {"augmented_passes": 2, "alpha_steps": 2, "beta_steps": 2, "gamma_steps": 2},
    "ape_t": {"augmented_passes": 2, "alpha_steps": 2, "beta_steps": 2},
    "clap": {"augmented_passes": 2},
    "cupl": {"sentences": DESCRIPTIONS},
    "cross_modal": {"steps": 8, "every": 3, "rates": (1e-3,), "decays": (0.0,)},
    "cross_modal_adapter": {"steps": 8, "every": 3, "rates": (1e-3,), "decays": (0.0,)},
    "gallop": {"top_k": (1, 2, 3, 4)},
    "gda": {"augmented_passes": 2, "estimator": "base_to_new"},
    "ivlp": {"depth_text": 2, "depth_vision": 2},
    "lfa": {"augmented_passes": 2, "tries": 3, "splits": 2, "steps": 6},
    "lp_plus_plus": {"steps": 12},
    "maple": {"depth": 2},
    "mma": {"first": 2, "last": 3, "dim": 4},
    "mocoop": {"groups": (1, 2), "prompts": ("", "a {} in a game.", "a good {}.")},
    "proker": {"augmented_passes": 2, "beta_steps": 2, "ridge_steps": 2},
    "promptsrc": {"depth_text": 1, "depth_vision": 2, "templates": ("a photo of a {}.",)},
    "tcp": {"layer": 2},
    "tda": {"views": 3, "confident_share": 0.7},
    "tip_adapter": {"augmented_passes": 2, "alpha_steps": 2, "beta_steps": 2},
    "tip_adapter_f": {"augmented_passes": 2, "alpha_steps": 2, "beta_steps": 2},
    "tip_x": {"alpha_steps": 2, "beta_steps": 2, "gamma_steps": 2},
    "tpt": {"views": 3, "confident_share": 0.7},
    "waffleclip": {"pairs": 2},
    "zpe": {"templates": ("a photo of a {}.", "{}", "a drawing of the {}.")},
}
"""Settings with which a CLIP of three layers and a few images are enough."""


def write_image(path, rng, colour=None):
    """A small random image file, of about that colour if one is given."""
    pixels = rng.integers(0, 256, (40, 50, 3))
    if colour is not None:
        pixels = (3 * np.array(colour) + pixels) // 4
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def write_images(root, paths):
    """A small random image file at each of the paths below root; root."""
    rng = np.random.default_rng(0)
    for path in paths:
        write_image(root / path, rng)
    return root


def image_folder(root, classes, count):
    """A folder of small random JPEG files."""
    return write_images(
        root,
        [
            f"{split}/{name}/{index}.jpg"
            for split in ("train", "test")
            for name in classes
            for index in range(count)
        ],
    )


# Where the images of each dataset lie, the split's file, and up to six classes: how the paths of
# its images begin, and its name. Every image has a number of its own behind that.
SPLIT_FILES = {
    "caltech101": (
        "caltech-101/101_ObjectCategories",
        "caltech-101/split_zhou_Caltech101.json",
        {
            "Faces/image_": "face",
            "Leopards/image_": "leopard",
            "Motorbikes/image_": "motorbike",
            "ceiling_fan/image_": "ceiling_fan",
            "airplanes/image_": "airplane",
            "yin_yang/image_": "yin_yang",
        },
    ),
    "oxford_pets": (
        "oxford_pets/images",
        "oxford_pets/split_zhou_OxfordPets.json",
        {
            "Abyssinian_": "abyssinian",
            "american_bulldog_": "american_bulldog",
            "Bengal_": "bengal",
            "pug_": "pug",
            "Sphynx_": "sphynx",
            "yorkshire_terrier_": "yorkshire_terrier",
        },
    ),
    "stanford_cars": (
        "stanford_cars",
        "stanford_cars/split_zhou_StanfordCars.json",
        {
            "cars_{half}/0": "2000 AM General Hummer SUV",
            "cars_{half}/1": "2012 Acura RL Sedan",
            "cars_{half}/2": "2008 Acura TL Type-S",
            "cars_{half}/3": "2012 Audi TTS Coupe",
            "cars_{half}/4": "2007 BMW X5 SUV",
            "cars_{half}/5": "2012 Chrysler Town and Country Minivan",
        },
    ),
    "oxford_flowers": (
        "oxford_flowers/jpg",
        "oxford_flowers/split_zhou_OxfordFlowers.json",
        {
            "image_0": "pink primrose",
            "image_1": "hard-leaved pocket orchid",
            "image_2": "canterbury bells",
            "image_3": "sweet pea",
            "image_4": "english marigold",
            "image_5": "tiger lily",
        },
    ),
    "food101": (
        "food-101/images",
        "food-101/split_zhou_Food101.json",
        {
            f"{name}/": name
            for name in ("apple_pie", "baklava", "churros", "gyoza", "pho", "waffles")
        },
    ),
    "sun397": (
        "sun397/SUN397",
        "sun397/split_zhou_SUN397.json",
        {
            "a/abbey/sun_": "abbey",
            "a/airplane_cabin/sun_": "airplane_cabin",
            "a/apse/indoor/sun_": "indoor apse",
            "a/aquarium/sun_": "aquarium",
            "b/barn/sun_": "barn",
            "y/youth_hostel/sun_": "youth_hostel",
        },
    ),
    "dtd": (
        "dtd/images",
        "dtd/split_zhou_DescribableTextures.json",
        {
            f"{name}/{name}_": name
            for name in ("banded", "braided", "dotted", "polka-dotted", "striped", "zigzagged")
        },
    ),
    "eurosat": (
        "eurosat/2750",
        "eurosat/split_zhou_EuroSAT.json",
        {
            "AnnualCrop/AnnualCrop_": "Annual Crop Land",
            "Forest/Forest_": "Forest",
            "Highway/Highway_": "Highway or Road",
            "Industrial/Industrial_": "Industrial Buildings",
            "River/River_": "River",
            "SeaLake/SeaLake_": "Sea or Lake",
        },
    ),
    "ucf101": (
        "ucf101/UCF-101-midframes",
        "ucf101/split_zhou_UCF101.json",
        {
            "Apply_Eye_Makeup/v_ApplyEyeMakeup_": "Apply_Eye_Makeup",
            "Archery/v_Archery_": "Archery",
            "Balance_Beam/v_BalanceBeam_": "Balance_Beam",
            "Mixing/v_Mixing_": "Mixing",
            "Yo_Yo/v_YoYo_": "Yo_Yo",
            "Typing/v_Typing_": "Typing",
        },
    ),
}
AIRCRAFT = ("F/A-18", "Cessna 172", "707-320", "Tu-154", "A300B4", "DHC-8-100")
IMAGENET = {
    "n03773504": "missile",
    "n04008634": "missile",
    "n01440764": "tench",
    "n07753592": "banana",
    "n02119789": "kit fox",
    "n03272010": "electric guitar",
}
WNID_FOLDERS = {
    "imagenetv2": "imagenetv2/imagenetv2-matched-frequency-format-val",
    "imagenet_sketch": "imagenet-sketch/images",
    "imagenet_a": "imagenet-adversarial/imagenet-a",
    "imagenet_r": "imagenet-rendition/imagenet-r",
}


def coop_data(root, names=None, classes=4, images=None):
    """CoOp's `$DATA` folder in small: a few images of a few classes, in the official layouts.

    Each class has 6 images for training, 4 for validation and 5 for testing, which show about the
    colour of the class. Flowers and Cars list their labels in another order than the ascending
    one, as in truth. ImageNet has two classes of the name "missile". ImageNet-A and -R have every
    other class of ImageNet alone.

    Args:
        root: the folder, made if there is none.
        names: which of the 15 datasets; all by default.
        classes: how many classes, from 2 to 6.
        images: training images per class in place of 6.

    Returns:
        root.
    """
    assert 2 <= classes <= 6
    counts = {"train": images or 6, "val": 4, "test": 5}
    for name in names or (*SPLIT_FILES, "fgvc_aircraft", "imagenet", *WNID_FOLDERS):
        write = _Writer(root, classes)
        if name in SPLIT_FILES:
            _write_split(write, name, counts)
        elif name == "fgvc_aircraft":
            _write_aircraft(write, counts)
        else:
            _write_imagenet(write, name, counts)
    return root


class _Writer:
    """Writes the images of a dataset."""

    def __init__(self, root, classes):
        self.root, self.classes = root, classes
        self._rng = np.random.default_rng(0)
        self._hues = [colorsys.hsv_to_rgb(k / classes, 1, 1) for k in range(classes)]

    def image(self, path, label):
        """An image of the label's colour."""
        write_image(self.root / path, self._rng, 255 * np.array(self._hues[label]))

    def text(self, path, lines):
        """A text file."""
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text("".join(f"{line}\n" for line in lines))


def _write_split(write, name, counts):
    images, split_file, named = SPLIT_FILES[name]
    begins = list(named)[: write.classes]
    labels = list(range(write.classes))
    if name in ("oxford_flowers", "stanford_cars"):
        labels = labels[1::2] + labels[::2]
    rows, numbers = {}, itertools.count(1)
    for split, count in counts.items():
        rows[split] = []
        for label in labels:
            begin = begins[label].format(half="test" if split == "test" else "train")
            for number in itertools.islice(numbers, count):
                path = f"{begin}{number:04d}.jpg"
                write.image(f"{images}/{path}", label)
                rows[split].append([path, label, named[begins[label]]])
    if name == "stanford_cars":
        rows["test"] = rows["test"][::2] + rows["test"][1::2]
    write.text(split_file, [json.dumps(rows)])


def _write_aircraft(write, counts):
    names = sorted(AIRCRAFT[: write.classes])
    write.text("fgvc_aircraft/variants.txt", names)
    numbers = itertools.count(34309)
    for split, count in counts.items():
        lines = []
        for label, name in enumerate(names):
            for number in itertools.islice(numbers, count):
                write.image(f"fgvc_aircraft/images/{number:07d}.jpg", label)
                lines.append(f"{number:07d} {name}")
        write.text(f"fgvc_aircraft/images_variant_{split}.txt", lines)


def _write_imagenet(write, name, counts):
    wnids = sorted(list(IMAGENET)[: write.classes])
    folder = WNID_FOLDERS.get(name, "imagenet/images")
    names = [f"{wnid} {IMAGENET[wnid]}" for wnid in wnids]
    write.text(f"{folder.split('/')[0]}/classnames.txt", names)
    if name == "imagenet":
        truth = tfds_path("datasets/imagenet2012/validation_labels.txt").read_text().split()
        for label, wnid in enumerate(wnids):
            for number in range(counts["train"]):
                write.image(f"{folder}/train/{wnid}/{wnid}_{number}.JPEG", label)
            of_label = (number for number, other in enumerate(truth, 1) if other == wnid)
            for number in itertools.islice(of_label, counts["test"]):
                write.image(f"{folder}/val/{wnid}/ILSVRC2012_val_{number:08d}.JPEG", label)
        return
    chosen = wnids[::2] if name in ("imagenet_a", "imagenet_r") else wnids
    for label, wnid in enumerate(chosen):
        place = str(label) if name == "imagenetv2" else wnid
        for number in range(counts["test"]):
            write.image(f"{folder}/{place}/{number}.jpg", wnids.index(wnid))
    if chosen != wnids:
        write.text(f"{folder}/README.txt", ["Beside the folders."])


def flatten(folder):
    """Move the files of the folders in a folder into the folder itself."""
    for path in sorted(folder.glob("*/*")):
        path.rename(folder / path.name)
    for path in [path for path in folder.iterdir() if path.is_dir()]:
        path.rmdir()


def refusal(call, *arguments, **named):
    """The one line that a call is refused with, which says what to do behind a semicolon."""
    with pytest.raises(InputError) as caught:
        call(*arguments, **named)
    message = str(caught.value)
    assert "\n" not in message
    assert "expected" in message
    assert ", got" in message
    assert ";" in message.split(", got", 1)[1]
    return message


OF_OPENAI = {"activation": "quick_gelu", "heads": (1, 1)}
"""The words that `openai_tensors` need, from which neither can be read."""


def openai_tensors() -> dict[str, np.ndarray]:
    """A small ViT under OpenAI's names, of OpenAI's proportions (heads of width 64)."""
    rng = np.random.default_rng(0)
    width, tensors = 64, {}

    def add(name, *shape):
        tensors[name] = rng.normal(size=shape).astype(np.float32)

    for prefix, layers in (("transformer", 2), ("visual.transformer", 1)):
        for layer in range(layers):
            block = f"{prefix}.resblocks.{layer}"
            add(f"{block}.attn.in_proj_weight", 3 * width, width)
            add(f"{block}.attn.in_proj_bias", 3 * width)
            add(f"{block}.attn.out_proj.weight", width, width)
            add(f"{block}.attn.out_proj.bias", width)
            add(f"{block}.mlp.c_fc.weight", 4 * width, width)
            add(f"{block}.mlp.c_fc.bias", 4 * width)
            add(f"{block}.mlp.c_proj.weight", width, 4 * width)
            add(f"{block}.mlp.c_proj.bias", width)
            for norm in ("ln_1", "ln_2"):
                add(f"{block}.{norm}.weight", width)
                add(f"{block}.{norm}.bias", width)
    for norm in ("ln_final", "visual.ln_pre", "visual.ln_post"):
        add(f"{norm}.weight", width)
        add(f"{norm}.bias", width)
    add("token_embedding.weight", 929, width)  # the embedded tokenizer's
    add("positional_embedding", 9, width)
    add("text_projection", width, 16)
    add("visual.class_embedding", width)
    add("visual.positional_embedding", 5, width)
    add("visual.conv1.weight", width, 3, 4, 4)
    add("visual.proj", width, 16)
    tensors["logit_scale"] = np.asarray(4.6, np.float32)
    return tensors


def openai_config() -> dict:
    """The `model_cfg` with which open_clip describes `openai_tensors`, but for the activation."""
    return {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 8, "layers": 1, "width": 64, "patch_size": 4},
        "text_cfg": {
            "context_length": 9,
            "vocab_size": 929,
            "width": 64,
            "heads": 1,
            "layers": 2,
        },
    }


def make_snapshot(cache: Path, repository: str) -> Path:
    """The folder that huggingface_hub has for what it fetched of a repository's main branch."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0" * 40)
    return snapshot


def write_hub_cache(cache: Path, backbone: str) -> dict[str, np.ndarray]:
    """Lay small weights out as huggingface_hub caches a backbone's repository; the tensors."""
    snapshot = make_snapshot(cache, source.BACKBONES[backbone])
    for file in source.EMBEDDED_FOLDER.glob("[mtv]*.[jt]*"):  # the tokenizer's
        shutil.copy(file, snapshot)
    tensors = openai_tensors()
    save_file(tensors, snapshot / "open_clip_model.safetensors")
    (snapshot / "config.json").write_text(json.dumps({"architecture": "timm's, not CLIP's"}))
    return tensors


TEXTURES = ["polka_dot", "striped", "zigzagged", "woven"]
"""Classes of given features."""


def feature_arrays(seed=0, views=1, shots=3, **changes):
    """Arrays of four classes; a change of None leaves one out."""
    rng = np.random.default_rng(seed)
    texts = rng.normal(size=(len(TEXTURES), 12)).astype(np.float32)
    arrays = {"class_names": np.array(TEXTURES), "text_features": texts}
    for split, count in (("train", shots), ("val", 2), ("test", 5)):
        labels = np.repeat(np.arange(len(TEXTURES)), count)
        shape = (views, len(labels), 12) if split == "train" else (len(labels), 12)
        noise = rng.normal(size=shape).astype(np.float32)
        of_images = 3 * (texts[labels] + noise)
        arrays |= {f"{split}_features": of_images, f"{split}_labels": labels}
    if views == 1:
        arrays["train_features"] = arrays["train_features"][0]
    return {key: value for key, value in (arrays | changes).items() if value is not None}
