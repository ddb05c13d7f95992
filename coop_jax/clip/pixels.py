"""Pixels as the maker of a checkpoint makes them, read from its own settings.

Every key is honoured, known to change nothing (`OPEN_CLIP_NOTHING`, `HUGGING_FACE_NOTHING`), or
refused by its name. What is compared with is open_clip's `image_transform_v2` and the Pillow
backend of transformers' image processors.
"""

from collections.abc import Mapping
from typing import Any, NoReturn

from coop_jax.clip.config import OPENAI_MEAN, OPENAI_STD, PixelConfig
from coop_jax.errors import InputError

LARGEST = 2**14
"""Pixels of the longest side that an image may be resized to."""

FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""Pillow's filters in the order of the numbers that transformers calls them by."""

HALVES = (0.5, 0.5, 0.5)

OPEN_CLIP_NOTHING = {
    "size": "open_clip takes the size of the image tower",
}
"""Keys of a `preprocess_cfg` that change nothing, and why."""

HUGGING_FACE_NOTHING = {
    "do_convert_rgb": "images are RGB before; others would not fit the tower",
    "processor_class": "names the class that joins images with texts",
    "feature_extractor_type": "read where `image_processor_type` is absent",
    "image_processor_type": "read with the defaults",
    "data_format": "order of the axes of the array",
    "input_data_format": "order of the axes of arrays; images have one alone",
    "return_tensors": "type of the array",
    "device": "where the array lies",
    "disable_grouping": "batches of images of one size",
    "image_seq_length": "for texts with images between them",
    "transformers_version": "what wrote the file",
    "_valid_processor_keys": "names of arguments",
}
"""Keys of a `preprocessor_config.json` that change nothing or are read elsewhere, and why."""

_SHORTEST = {"size": {"shortest_edge": 224}, "crop_size": 224, "do_center_crop": True}
_OPENAI = {"resample": 3, "image_mean": OPENAI_MEAN, "image_std": OPENAI_STD}
_HALVES = {"image_mean": HALVES, "image_std": HALVES, "do_center_crop": False, "crop_size": None}
_SQUARE = {"size": {"height": 224, "width": 224}}
_ALL = {
    "do_resize": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "do_pad": False,
    "pad_size": None,
    "default_to_square": True,
    "auto_map": None,
    "use_square_size": False,
}
PROCESSORS: dict[str, dict[str, Any]] = {
    "CLIPImageProcessor": {**_ALL, **_SHORTEST, **_OPENAI, "default_to_square": False},
    "BitImageProcessor": {**_ALL, **_SHORTEST, **_OPENAI, "default_to_square": False},
    "SiglipImageProcessor": {
        **_ALL,
        **_HALVES,
        **_SQUARE,
        "resample": 3,
        "default_to_square": False,
    },
    "ViTImageProcessor": {**_ALL, **_HALVES, **_SQUARE, "resample": 2},
    "DeiTImageProcessor": {
        **_ALL,
        **_HALVES,
        "resample": 3,
        "size": {"height": 256, "width": 256},
        "crop_size": 224,
        "do_center_crop": True,
    },
}
"""transformers' image processors with the values of the keys that a file leaves out."""

MADE_BY = {"clip": "CLIPImageProcessor", "siglip": "SiglipImageProcessor"}
"""The image processor of a `model_type` where no file names one."""


class _Stated:
    """The settings in a file, each refused by its name where it is not supported."""

    def __init__(self, values: Any, where: str):
        self.where = where
        if not isinstance(values, Mapping):
            self.refuse("the settings of the pixels", "an object", values)
        self.values = values

    def refuse(self, key: str, expected: str, got: Any) -> NoReturn:
        raise InputError(
            f"{self.where}: {key}: expected {expected}, got {got!r:.80}; such pixels are not"
            " supported"
        )

    def known(self, *tables: Mapping[str, Any]) -> None:
        for key, value in self.values.items():
            if not any(key in table for table in tables):
                self.refuse(f"{key!s:.40}", "a key whose meaning is known", value)

    def numbers(self, key: str, value: Any, least: float = -1e6) -> tuple[float, float, float]:
        """Three numbers, or one for all channels."""
        each = list(value) if isinstance(value, (list, tuple)) else [value] * 3
        if len(each) != 3 or not all(_is_number(number, least) for number in each):
            positive = " above 0" if least > 0 else ""
            self.refuse(key, f"three finite numbers{positive}", value)
        return float(each[0]), float(each[1]), float(each[2])

    def boolean(self, key: str, value: Any) -> bool:
        if not isinstance(value, bool):
            self.refuse(key, "true or false", value)
        return value

    def choice(self, key: str, value: Any, choices: Mapping[str, str]) -> str:
        if not isinstance(value, str) or value not in choices:
            self.refuse(key, f"one of {', '.join(choices)}", value)
        return choices[value]

    def sides(self, key: str, value: Any, square: bool = True) -> tuple[int, ...]:
        """A height and a width or, of one number and not `square`, the shortest side alone."""
        sides = value if isinstance(value, (list, tuple)) else [value] * (2 if square else 1)
        if isinstance(value, Mapping):
            if set(value) == {"height", "width"}:
                sides = [value["height"], value["width"]]
            elif set(value) == {"shortest_edge"}:
                sides = [value["shortest_edge"]]
            else:
                keys = "shortest_edge, or height and width"
                self.refuse(key, keys, ", ".join(map(str, value)) or "nothing")
        elif isinstance(value, (list, tuple)) and len(value) != 2:
            self.refuse(key, "a height and a width", value)
        for side in sides:
            if not isinstance(side, int) or isinstance(side, bool) or not 1 <= side <= LARGEST:
                self.refuse(key, f"whole numbers from 1 to {LARGEST}", value)
        return tuple(sides)


def _is_number(value: Any, least: float) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and least <= value <= 1e6


def from_open_clip(stated: Any, where: str) -> PixelConfig:
    """Read the `preprocess_cfg` of an `open_clip_config.json`.

    Args:
        stated: the object; None or {} means open_clip's defaults, which are OpenAI's.
        where: the file's name, for messages.

    Raises:
        InputError: a key or value that is not supported, by its name.
    """
    file = _Stated({} if stated is None else stated, where)
    honoured = {
        "mode": "RGB",
        "mean": OPENAI_MEAN,
        "std": OPENAI_STD,
        "interpolation": "bicubic",
        "resize_mode": "shortest",
        "fill_color": 0,
    }
    file.known(honoured, OPEN_CLIP_NOTHING)
    # As in open_clip, what is null has its default.
    said = honoured | {key: value for key, value in file.values.items() if value is not None}
    file.choice("mode", said["mode"], {"RGB": "RGB"})
    resize = {mode: mode for mode in ("shortest", "longest", "squash")}
    # "random" is of open_clip's training alone; its test transform is then bicubic.
    filters = {"bicubic": "bicubic", "bilinear": "bilinear", "random": "bicubic"}
    fill = said["fill_color"]
    if not isinstance(fill, int) or isinstance(fill, bool) or not 0 <= fill <= 255:
        file.refuse("fill_color", "a whole number from 0 to 255", fill)
    for key in ("mean", "std"):
        if isinstance(said[key], (int, float)) and not said[key]:
            file.refuse(key, "three finite numbers", said[key])  # open_clip takes 0 for nothing
    return PixelConfig(
        mean=file.numbers("mean", said["mean"]),
        std=file.numbers("std", said["std"], 1e-6),
        resize=file.choice("resize_mode", said["resize_mode"], resize),
        interpolation=file.choice("interpolation", said["interpolation"], filters),
        fill=fill,
    )


def from_hugging_face(
    stated: Any, image_size: int, where: str, model_type: str = "clip"
) -> PixelConfig:
    """Read a `preprocessor_config.json` of transformers.

    Args:
        stated: the object; {} means the model's own processor at the tower's size.
        image_size: of the tower.
        where: the file's name, for messages.
        model_type: "clip" or "siglip", whose processor it is where none is named.

    Raises:
        InputError: a key or value that is not supported, by its name, or pixels of another size
            than the tower's.
    """
    file = _Stated(stated, where)
    default = PROCESSORS[_processor(file, model_type)]
    if not stated:
        crop = default["do_center_crop"]
        square = {"height": image_size, "width": image_size}
        size = {"shortest_edge": image_size} if crop else square
        default = default | {"size": size, "crop_size": image_size}
    file.known(default, HUGGING_FACE_NOTHING)
    said = default | {key: value for key, value in file.values.items() if value is not None}
    for key in ("do_pad", "use_square_size"):
        if file.boolean(key, said[key]):
            file.refuse(key, "false", True)
    if said["auto_map"]:
        file.refuse("auto_map", "none, as it names code outside transformers", said["auto_map"])
    mean, std = _normalisation(file, said)
    resize, resize_to = _resize(file, said, image_size)
    resample = said["resample"]
    if not isinstance(resample, int) or isinstance(resample, bool) or resample not in range(6):
        file.refuse("resample", "one of 0, 1, 2, 3, 4, 5", resample)
    return PixelConfig(mean, std, resize, resize_to, FILTERS[resample], "floor")


def _processor(file: _Stated, model_type: str) -> str:
    """The name of the image processor that a file is of, without its ending "Fast" or "Pil"."""
    key, said = "image_processor_type", file.values.get("image_processor_type")
    if said is None and file.values.get("feature_extractor_type") is not None:
        key, said = "feature_extractor_type", file.values["feature_extractor_type"]
    name = MADE_BY[model_type] if said is None else said
    if isinstance(name, str):
        name = name.replace("FeatureExtractor", "ImageProcessor")
        name = name.removesuffix("Fast").removesuffix("Pil")
    if not isinstance(name, str) or name not in PROCESSORS:
        file.refuse(key, f"one of {', '.join(PROCESSORS)}", said)
    return name


def _normalisation(
    file: _Stated, said: Mapping[str, Any]
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """The mean and the deviation, of values in [0, 1] whatever the file scales pixels by."""
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if file.boolean("do_normalize", said["do_normalize"]):
        mean = file.numbers("image_mean", said["image_mean"])
        std = file.numbers("image_std", said["image_std"], 1e-6)
    factor = 1.0
    if file.boolean("do_rescale", said["do_rescale"]):
        factor = said["rescale_factor"]
        if not _is_number(factor, 1e-6):
            file.refuse("rescale_factor", "a finite number above 0", factor)
    scale = factor * 255
    if abs(scale - 1) > 1e-9:
        mean = mean[0] / scale, mean[1] / scale, mean[2] / scale
        std = std[0] / scale, std[1] / scale, std[2] / scale
    return mean, std


def _resize(
    file: _Stated, said: Mapping[str, Any], image_size: int
) -> tuple[str, tuple[int, int] | None]:
    """The resize and the sides that it brings to which length; what follows is square."""
    wanted = (image_size, image_size)
    crops = file.boolean("do_center_crop", said["do_center_crop"])
    if crops and (crop := file.sides("crop_size", said["crop_size"])) != wanted:
        file.refuse("crop_size", f"the image tower's {image_size} x {image_size}", list(crop))
    if not file.boolean("do_resize", said["do_resize"]):
        if not crops:
            file.refuse("do_resize", "true where do_center_crop is false", False)
        return "none", None
    square = file.boolean("default_to_square", said["default_to_square"])
    sides = file.sides("size", said["size"], square)
    if len(sides) == 1:
        if not crops:
            file.refuse("do_center_crop", "true where size is shortest_edge", False)
        return "shortest", None if sides[0] == image_size else (sides[0], sides[0])
    if not crops and sides != wanted:
        file.refuse("size", f"the image tower's {image_size} x {image_size}", list(sides))
    return "squash", None if sides == wanted else (sides[0], sides[1])


def image_processor(processor: Any, preprocessor: Any) -> Any:
    """Choose what transformers 5 reads: `image_processor` of a `processor_config.json` is first.

    Args:
        processor: the object in `processor_config.json`; {} where there is no such file.
        preprocessor: the object in `preprocessor_config.json`; {} where there is no such file.
    """
    if isinstance(processor, Mapping) and "image_processor" in processor:
        return processor["image_processor"]
    return preprocessor
