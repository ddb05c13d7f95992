"""Files of PyTorch, read and written with the extra `torch`. The only place that imports torch."""

import io
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from coop_jax.clip import pickles
from coop_jax.errors import InputError

SKIPPED_PACKAGES = ("torch.optim.", "dassl.optim.")
"""Whose objects are passed over: training code saves its optimizer and scheduler, too."""


class _Skipped:
    """Stand in for an object that is passed over: take whatever a pickle gives, keep nothing."""

    def __new__(cls, *_: Any) -> "_Skipped":
        return object.__new__(cls)

    def __init__(self, *_: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, name: Any, value: Any) -> None:
        pass


CONTAINERS = {"builtins.dict": dict, "collections.defaultdict": lambda _: {}}
"""Containers of an optimizer's state, besides those that torch allows by itself."""

SKIPPED = (
    "_codecs.encode",
    "argparse.Namespace",
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
    "numpy.ndarray",
    "pathlib.PosixPath",
    "pathlib._local.PosixPath",
)
"""Names whose objects are passed over, too: options, and numbers such as the best accuracy."""

HOLDERS = ("state_dict", "model_state_dict", "model")
"""Under which of these names a checkpoint has the weights, if not at its root."""


class TorchArchive:
    """The tensors in a file of PyTorch, by name.

    The file is a TorchScript archive (OpenAI's `.pt`), a state dict, or a checkpoint that has one
    under a name of `HOLDERS`. It is read by `torch.load(weights_only=True)`: no name in it is
    called but those that torch knows as harmless, and objects of `SKIPPED` are passed over.

    Attributes:
        checkpoint: all that the file has by name, e.g. `epoch`.

    Raises:
        InputError: torch is not installed, or the file is missing, damaged or holds other objects.
    """

    def __init__(self, path: Path):
        self._path = path
        torch = _torch(path)
        if not path.is_file():
            raise InputError(f"expected a file of PyTorch, got {path}, no file; name one")
        content = _load(torch, path)
        self.checkpoint: Mapping[str, Any] = content if isinstance(content, Mapping) else {}
        state: Mapping[str, Any] = self.checkpoint
        for _ in HOLDERS:
            holders = [name for name in HOLDERS if _has_tensors(torch, state.get(name))]
            if len(holders) > 1:
                raise InputError(
                    f"{path}: expected weights under one name, got {' and '.join(holders)}; save"
                    " the state dict that is meant by itself"
                )
            state = state[holders[0]] if holders else state
        self._tensors: dict[str, Any] = {
            name: value.detach()
            for name, value in state.items()
            if isinstance(name, str) and isinstance(value, torch.Tensor)
        }

    def names(self) -> set[str]:
        """All tensor names."""
        return set(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one tensor."""
        return tuple(self._tensors[name].shape)

    def read(self, name: str) -> np.ndarray:
        """One tensor: float16 as it is, bfloat16 as float32.

        Raises:
            InputError: its numbers are of another kind.
        """
        tensor = self._tensors[name]
        dtype = str(tensor.dtype).removeprefix("torch.")
        is_dense = (
            str(tensor.layout) == "torch.strided"
            and tensor.nbytes <= tensor.untyped_storage().nbytes()
        )
        if dtype not in ("float16", "bfloat16", "float32") or not is_dense:
            raise InputError(
                f"{self._path}: expected dense tensors of float16, bfloat16 or float32, got {name}"
                f" of {dtype}; convert it in PyTorch"
            )
        try:
            return (tensor.float() if dtype == "bfloat16" else tensor).numpy()
        except (RuntimeError, TypeError) as error:  # a tensor without numbers, or a lazy one
            raise InputError(
                f"{self._path}: expected numbers in {name!a:.80}, got"
                f" {' '.join(str(error).split())!s:.200}; save it anew in PyTorch"
            ) from error


def dumps(path: Path, tensors: Mapping[str, np.ndarray], values: Mapping[str, Any]) -> bytes:
    """Return a checkpoint as `torch.save` writes it: the tensors as `state_dict`, and plain values.

    Args:
        path: what an error calls the file.
        tensors: by name.
        values: by name: numbers, texts, None, or containers of these.

    Raises:
        InputError: torch is not installed.
    """
    torch = _torch(path)
    state = {name: torch.from_numpy(np.array(array)) for name, array in tensors.items()}
    file = io.BytesIO()
    torch.save({"state_dict": state, **values}, file)
    return file.getvalue()


def _has_tensors(torch: Any, value: Any) -> bool:
    """Return True for what may be weights, or has them under a name of `HOLDERS`."""
    if not isinstance(value, Mapping):
        return False
    return any(name in value for name in HOLDERS) or any(
        isinstance(entry, torch.Tensor) for entry in value.values()
    )


def _torch(path: Path) -> Any:
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError(
            f"{path}: expected torch, which reads and writes such files, got none installed; pip"
            " install 'coop_jax[torch]'"
        ) from error
    return torch


def _load(torch: Any, path: Path) -> Any:
    """Return the contents of a file, of tensors and plain containers alone."""
    try:
        pickles.check(path)
        named = []  # the format before PyTorch 1.6 does not tell
        if pickles.is_zip(path):
            if _is_torch_script(path):
                with warnings.catch_warnings():  # nothing else reads TorchScript
                    warnings.simplefilter("ignore", FutureWarning)
                    return torch.jit.load(str(path), map_location="cpu").state_dict()
            named = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        allowed: dict[str, Any] = {
            name: _Skipped for name in named if name.startswith(SKIPPED_PACKAGES)
        }
        allowed |= dict.fromkeys(SKIPPED, _Skipped) | CONTAINERS
        refused = sorted(set(named) - set(allowed))
        if refused:
            raise InputError(
                f"{path}: expected tensors alone, got a pickle that names"
                f" {', '.join(refused)!a:.200}, which was not run; do not trust this file"
            )
        kinds = [(kind, name) for name, kind in allowed.items()]
        # A file that is open, as torch takes a path that ends in .safetensors for such a file.
        with path.open("rb") as file, torch.serialization.safe_globals(kinds):
            return torch.load(file, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except Exception as error:  # whatever the bytes of a damaged file lead to
        raise InputError(
            f"{path}: expected a TorchScript archive or what torch.save wrote of tensors, got a"
            " damaged file or other objects, which were not run; fetch it again"
        ) from error


def _is_torch_script(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())
