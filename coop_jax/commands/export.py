"""Write a saved method for other software; the ending says for which.

  coop_jax export my_prompt weights.safetensors      class weights: PyTorch, anything
  coop_jax export my_prompt weights.npz              class weights: NumPy
  coop_jax export my_prompt classifier.stablehlo     all of the classifier: jax.export
  coop_jax export my_prompt official/prompt_learner/model.pth.tar-50
                                                     the official CoOp or CoCoOp code

.safetensors: the tensors "weight", float32 [classes, embedding], and "bias"; the metadata has
"classes" (JSON), "normalizes" and "backbone". The logits are the product with image features (of
length one, where "normalizes" is true) plus the bias. .npz has arrays of these names. Methods that
are not linear in image features have no such weights.

.stablehlo: a program for CPU, GPU (CUDA) and TPU that holds the CLIP's image tower (350 MB of
ViT-B/16 in float32): uint8 pixels [batch, size, size, 3] to float32 logits [batch, classes]; a
.json beside it names classes and pixels. A method that remembers test images has none. JAX promises
to read it for six months: keep the folder.
"""

import argparse
import re
import shlex
from pathlib import Path

from coop_jax import command_line
from coop_jax.commands import options
from coop_jax.errors import InputError
from coop_jax.printing import escaped


def arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    options.add_saved(parser)
    parser.add_argument(
        "file",
        type=command_line.path,
        help="new file: .safetensors, .npz, .stablehlo or .pth.tar-EPOCHS",
    )


def run(chosen: argparse.Namespace) -> int:
    """Write the file."""
    from coop_jax import terminal

    path: Path = chosen.file
    is_official = re.search(r"\.pth\.tar-\d+$", path.name)
    if not is_official and path.suffix not in (".safetensors", ".npz", ".stablehlo"):
        raise InputError(
            "expected a file that ends in .safetensors, .npz, .stablehlo or .pth.tar-EPOCHS, got"
            f" {path}; name it so"
        )
    written = [path, path.with_suffix(".json")] if path.suffix == ".stablehlo" else [path]
    terminal.check_new(written, makes_folders=is_official is not None)
    if is_official:
        _official(chosen)
    else:
        _export(chosen)
    for one in written:
        print(escaped(f"saved {one}"))
    return 0


def _official(chosen: argparse.Namespace) -> None:
    from coop_jax.saved import Saved, official

    if chosen.classes is not None:
        raise InputError(
            "expected no --classes with a file of the official code, which takes them from its"
            f" dataset, got {chosen.classes}; leave it out"
        )
    learned = Saved.load(chosen.saved)
    official.write(learned, chosen.file)
    folder, first = chosen.file.absolute().parent, "use it with"
    if folder.name != "prompt_learner":
        folder, first = "FOLDER", "move it to FOLDER/prompt_learner and use it with"
    else:
        folder = str(folder.parent)
    epoch = chosen.file.name.rpartition("-")[2]
    place = ("--model-dir", folder, "--load-epoch", epoch)
    print(first, shlex.join((*place, *official.options(learned))))


def _export(chosen: argparse.Namespace) -> None:
    from coop_jax.commands import loading
    from coop_jax.saved import export

    ready = loading.ready(chosen)
    said = {"class_names": ready.classes.names, "backbone": ready.saved.backbone}
    if chosen.file.suffix == ".stablehlo":
        export.save_program(chosen.file, export.program(ready.method, ready.clip), **said)
    else:
        weights = export.class_weights(ready.method, ready.clip)
        export.save_class_weights(chosen.file, weights, **said)
