"""Record normalised pixels of open_clip's and transformers' transforms, which need torch.

python tests/record_pixels.py tests/data/pixels.npz
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 5
SHAPES = ((14, 9), (8, 23), (5, 6), (3, 4))
OPEN_CLIP = {
    "default": {},
    "mean": {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]},
    "squash": {"resize_mode": "squash"},
    "bilinear squash": {"resize_mode": "squash", "interpolation": "bilinear"},
    "bilinear": {"interpolation": "bilinear"},
    "random": {"interpolation": "random"},
    "longest": {"resize_mode": "longest"},
    "filled longest": {"resize_mode": "longest", "fill_color": 127, "interpolation": "bilinear"},
}
SQUARE, LARGER = {"height": SIZE, "width": SIZE}, {"height": 6, "width": 9}
CROPPED = {"do_center_crop": True, "crop_size": SIZE}
CLIP, SIGLIP = "CLIPImageProcessor", "SiglipImageProcessor"
HUGGING_FACE = {
    "clip": {"image_processor_type": CLIP, "size": {"shortest_edge": SIZE}, "crop_size": SQUARE},
    "old clip": {"feature_extractor_type": "CLIPFeatureExtractor", "size": SIZE, **CROPPED},
    "larger": {"image_processor_type": CLIP, "size": 8, **CROPPED},
    "smaller": {"image_processor_type": CLIP, "size": 4, **CROPPED},
    "larger squash": {"image_processor_type": CLIP, "size": LARGER, **CROPPED},
    "squash": {"image_processor_type": CLIP, "size": SQUARE, "do_center_crop": False},
    "bilinear": {"image_processor_type": CLIP, "size": SIZE, **CROPPED, "resample": 2},
    "nearest": {"image_processor_type": CLIP, "size": SIZE, **CROPPED, "resample": 0},
    "lanczos": {"image_processor_type": CLIP, "size": SIZE, **CROPPED, "resample": 1},
    "not resized": {"image_processor_type": CLIP, "do_resize": False, **CROPPED},
    "not normalised": {"image_processor_type": SIGLIP, "size": SQUARE, "do_normalize": False},
    "not rescaled": {"image_processor_type": SIGLIP, "size": SQUARE, "do_rescale": False},
    "rescaled": {"image_processor_type": SIGLIP, "size": SQUARE, "rescale_factor": 1 / 127.5},
    "siglip": {"image_processor_type": "SiglipImageProcessorFast", "size": SQUARE},
    "vit": {"image_processor_type": "ViTImageProcessor", "size": SIZE},
    "deit": {"image_processor_type": "DeiTImageProcessor", "size": 7, "crop_size": SIZE},
    "bit": {"image_processor_type": "BitImageProcessor", "size": 6, "crop_size": SIZE},
}


def image(height: int, width: int) -> Image.Image:
    """Draw an image of noise, the same for a shape."""
    rng = np.random.default_rng([height, width])
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def open_clip_transform(stated: dict, size: int) -> Callable[[Image.Image], np.ndarray]:
    """Return open_clip's test transform, channels last."""
    from open_clip.transform import PreprocessCfg, image_transform_v2

    transform = image_transform_v2(PreprocessCfg(size=size, **stated), is_train=False)
    return lambda photograph: transform(photograph).numpy().transpose(1, 2, 0)


def hugging_face_transform(stated: dict) -> Callable[[Image.Image], np.ndarray]:
    """Return the Pillow backend of the image processor that a file names, channels last."""
    import transformers

    name = stated.get("image_processor_type") or stated["feature_extractor_type"]
    name = name.replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast")
    processor = getattr(transformers, f"{name}Pil")(**stated)

    def transform(photograph: Image.Image) -> np.ndarray:
        return processor(photograph, return_tensors="np").pixel_values[0].transpose(1, 2, 0)

    return transform


def main(path: Path) -> None:
    """Record every case on every shape."""
    transforms = {f"open_clip/{n}": open_clip_transform(s, SIZE) for n, s in OPEN_CLIP.items()}
    for name, stated in HUGGING_FACE.items():
        transforms[f"hugging_face/{name}"] = hugging_face_transform(stated)
    arrays = {
        name: np.stack([transform(image(*shape)) for shape in SHAPES]).astype(np.float32)
        for name, transform in transforms.items()
    }
    np.savez_compressed(path, **arrays)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
