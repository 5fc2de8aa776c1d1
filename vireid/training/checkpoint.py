"""Checkpoints: written whole or not at all, and read without executing anything."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from vireid._checks import check_count, check_path
from vireid._files import check_not_compressed, written_whole
from vireid.training.methods import METHODS, build, recipe_of, settings_of
from vireid.training.recipe import EVALUATION, Recipe

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["Checkpoint", "load_checkpoint", "load_model", "read_checkpoint"]

_NUMBERS, _DICTS = ("epoch", "images", "num_classes"), ("criterion", "model", "optimizer", "recipe", "settings")
_KEYS: dict[str, type] = dict.fromkeys(_NUMBERS, int) | dict.fromkeys(_DICTS, dict)


class Checkpoint(NamedTuple):
    """A trained model and how it came about.

    Attributes:
        model: in evaluation mode.
        method: "cift", "saai" or "g2da".
        settings: of the method, and what else `fit` was told to keep, such as the data set's name.
        recipe: of the training.
        epoch: number of epochs that it was trained for.
        num_classes: number of training identities.
    """

    model: nn.Module
    method: str
    settings: dict[str, Any]
    recipe: Recipe
    epoch: int
    num_classes: int


def load_checkpoint(path: str | Path, *, device: str | torch.device = "cpu") -> Checkpoint:
    """Open a checkpoint of a method of this library.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, no checkpoint of `fit`, or of a model of one's own.
    """
    state = read_checkpoint(path)
    settings = dict(state["settings"])
    method = settings.get("method")
    if method not in METHODS:
        raise ValueError(
            f"{path} must be of {', '.join(METHODS)}, got a checkpoint of {method_name(method)}: build that "
            "model, then call model.load_state_dict(read_checkpoint(path)['model'])"
        )
    own = {name: settings[name] for name in settings_of(method) if name in settings}
    own["weights"] = None  # those are in the checkpoint
    try:
        recipe = recipe_of(method).replace(**state["recipe"])  # with fields that an older version did not have
        if check_count("num_classes", state["num_classes"]) > sum(x.numel() for x in state["model"].values()):
            raise ValueError(f"num_classes must not exceed the model's numbers, got {state['num_classes']}")
        model, _ = build(method, state["num_classes"], recipe.size, own)
        model.load_state_dict(state["model"])
    except (TypeError, ValueError, RuntimeError, AttributeError, KeyError) as error:
        raise ValueError(f"{path} must hold the model of its settings: {error}") from error
    return Checkpoint(model.to(device).eval(), method, settings, recipe, state["epoch"], state["num_classes"])


def load_model(path: str | Path, *, device: str | torch.device = "cpu") -> nn.Module:
    """Return the model of a checkpoint, in evaluation mode; see `load_checkpoint`."""
    return load_checkpoint(path, device=device).model


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of `fit`, tensors and plain values only, onto the CPU.

    Returns:
        State dicts "model", "criterion" and "optimizer"; "recipe" and "settings" as plain values; "epoch",
        "num_classes" and "images", the number of training images.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, holds anything else, or is no checkpoint of `fit`.
    """
    path = check_path("path", path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        check_not_compressed(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except pickle.UnpicklingError:  # without torch's own text, which advises to let the file's code run
        raise ValueError(f"{path} is not a readable checkpoint: it must hold tensors and plain values only") from None
    except Exception as error:  # whatever torch.load makes of a damaged file
        raise ValueError(f"{path} is not a readable checkpoint: {error}") from error
    if not isinstance(state, dict) or not set(_KEYS) <= state.keys():
        raise ValueError(f"{path} is not a checkpoint of vireid.training.fit: it must hold {', '.join(sorted(_KEYS))}")
    for name, kind in _KEYS.items():
        if not isinstance(state[name], kind):
            raise ValueError(f"{path} must hold {name} as {kind.__name__}, got {type(state[name]).__name__}")
    if not all(isinstance(x, torch.Tensor) for x in state["model"].values()):
        raise ValueError(f"{path} must hold tensors as the model's values")
    return state


def save_checkpoint(fabric: "Fabric", path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint, modules and optimizers by their state dicts; every process must call it.

    The file takes its name when it is complete and on the disk. Fabric by itself would make two copies in memory and
    one in the system's temporary folder, where a killed process leaves it.
    """
    plain = {name: x.state_dict() if hasattr(x, "state_dict") else x for name, x in state.items()}
    if fabric.is_global_zero:
        with written_whole(path) as temporary, open(temporary, "wb") as stream:
            torch.save(plain, stream)  # a stream: its name would become part of the content
    fabric.barrier()


def resumable(path: Path, new: Mapping[str, Any], *, resume: bool) -> dict[str, Any] | None:
    """Return the checkpoint to go on from, or None to start anew.

    Args:
        path: of the checkpoint.
        new: "recipe", "settings" and "images" of the training that is to begin.
        resume: go on from the checkpoint; False: start anew, and overwrite one of equal settings. The number of epochs
            and what only an evaluation reads may differ.

    Raises:
        FileNotFoundError: if there is nothing to resume.
        ValueError: if the checkpoint there is another method's or was trained with other settings: it is neither mixed
            up nor overwritten.
    """
    if not resume and not path.exists():
        return None
    state = read_checkpoint(path)
    defaults = Recipe().to_dict()  # of fields that an older version did not have
    old, now = (defaults | x["recipe"] | x["settings"] | {"images": x["images"]} for x in (state, new))
    if old.get("method") != now.get("method"):
        methods = f"{method_name(old.get('method'))}, not of {method_name(now.get('method'))}"
        raise ValueError(f"{path} is a checkpoint of {methods}; name another output")
    changing = {"epochs", *EVALUATION}
    differing = sorted(key for key in (old.keys() | now.keys()) - changing if old.get(key) != now.get(key))
    if differing:
        changes = ", ".join(f"{key} {old.get(key)!r} -> {now.get(key)!r}" for key in differing)
        raise ValueError(f"{path} was trained with other settings ({changes}); name another output")
    return state if resume else None


def method_name(method: Any) -> str:
    """Return the name of a checkpoint's method for messages."""
    return "a model of one's own" if method is None else repr(method)


def trained_on(settings: Mapping[str, object]) -> str:
    """Return the data that settings of a training name, in words."""
    name = str(settings.get("dataset", "unknown"))
    return f"{name}, trial {settings.get('trial', 1)}" if name in ("regdb", "synthetic") else name
