"""OpenAI's `.pt` archives. The only place that imports torch, with the extra `torch`."""

from pathlib import Path

import numpy as np

from coop_jax.errors import InputError


class TorchArchive:
    """The tensors of an official `.pt`: a TorchScript archive or a plain state dict."""

    def __init__(self, path: Path):
        try:
            import torch  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise InputError(
                f"{path}: reading a .pt file needs torch; pip install 'coop_jax[torch]', or use"
                " the same weights as safetensors"
            ) from error
        try:
            state = torch.jit.load(str(path), map_location="cpu").state_dict()
        except RuntimeError:
            try:
                state = torch.load(path, map_location="cpu", weights_only=True)
            except Exception as error:
                raise InputError(
                    f"{path}: expected a TorchScript archive or a state dict of tensors, but it is"
                    " damaged or holds other objects; fetch it again"
                ) from error
        self._tensors: dict[str, np.ndarray] = {
            name: tensor.detach().float().numpy() for name, tensor in state.items()
        }

    def names(self) -> set[str]:
        """All tensor names."""
        return set(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one tensor."""
        return self._tensors[name].shape

    def read(self, name: str) -> np.ndarray:
        """One tensor."""
        return self._tensors[name]
