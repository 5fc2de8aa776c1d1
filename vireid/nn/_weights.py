"""Weights of backbones: the names of those that a library downloads, and local files."""

import os
import pickle
import re
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vireid._checks import extra
from vireid._files import check_not_compressed

_PUBLISHED = re.compile(r"imagenet|DEFAULT|IMAGENET\w+|\w+_Weights\.\w+")


def named_or_read(weights: object) -> tuple[str | None, dict[str, Tensor] | None]:
    """Return the name of weights that a library downloads, or the state dict in a local file; neither for None."""
    if weights is None:
        return None, None
    if not isinstance(weights, str | os.PathLike | Enum):
        raise TypeError(f"weights must be None, a name, a path or a member of torchvision's weights, got {weights!r}")
    if isinstance(weights, Enum) or _PUBLISHED.fullmatch(str(weights)):
        return str(weights), None  # of a member: its class and its name
    return None, read_state(Path(weights))


def read_state(path: Path) -> dict[str, Tensor]:
    """Read the state dict in the file ``path``; no pickled code is run."""
    if not path.is_file():
        raise FileNotFoundError(f"weights must be None, 'imagenet' or the path of a state dict, found no file {path}")
    if path.suffix == ".safetensors":
        state = _read_safetensors(path)
    else:
        try:
            check_not_compressed(path)
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError) as error:
            raise ValueError(f"weights: {path} is not a state dict that torch.load(weights_only=True) reads") from error
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        keys = f" with the keys {', '.join(map(repr, list(state)[:5]))}" if isinstance(state, dict) else ""
        raise ValueError(f"weights: {path} must hold a state dict (name -> tensor), got {type(state).__name__}{keys}")
    return state


def _read_safetensors(path: Path) -> Any:
    with extra("backbones", "a .safetensors file needs safetensors"):
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"weights: {path} is not a safetensors file: {error}") from error
