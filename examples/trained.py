"""A trained checkpoint opened again: its method, its model, and the images that it is looked at with."""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

import common
import train_cift
import train_g2da
import train_saai
from training import Method

METHODS = {script.METHOD.name: script.METHOD for script in (train_cift, train_saai, train_g2da)}


class Trained(NamedTuple):
    """What a checkpoint holds.

    Attributes:
        model: in evaluation mode.
        method: what it was trained by.
        config: the settings that it was trained with.
        epoch: after which it was saved.
    """

    model: nn.Module
    method: Method
    config: dict[str, Any]
    epoch: int


def open_model(path: Path, device: str) -> Trained:
    """The model of a checkpoint of any of the training scripts.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a checkpoint of one of them.
    """
    state = common.load_checkpoint(path)
    config = {**state["config"], "weights": None}  # the checkpoint holds the weights
    name = common.method_of(config)
    if name not in METHODS:
        raise ValueError(f"{path} must be of {' or '.join(METHODS)}, got a checkpoint of {name!r}")
    model, _ = METHODS[name].build_model(config, state["identities"])
    model.load_state_dict(state["model"])
    return Trained(model.to(device).eval(), METHODS[name], config, state["epoch"])


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options that say which images a checkpoint is looked at with; without them those that it was trained for."""
    common.add_data_options(parser)
    parser.add_argument(
        "--split", choices=["test", "all"], default="test", help="all: every identity is a test identity"
    )
    parser.add_argument("--keypoints", type=Path, help="of the images, for a checkpoint of train_g2da.py")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.set_defaults(dataset=None, trial=None)


def open_images(arguments: argparse.Namespace, config: dict[str, Any], size: list[int]) -> common.Dataset:
    """The images that the options name, by default those which ``config`` was trained for, at ``size`` (H, W)."""
    arguments.dataset = arguments.dataset or config["dataset"]
    if arguments.trial is None:  # another trial's test split holds identities that this one was trained on
        arguments.trial = config["trial"] if arguments.dataset == config["dataset"] else 1
    if common.method_of(config) == train_g2da.METHOD.name:
        common.find_keypoints(arguments, config.get("part_grid"))
        own = config.get("keypoints")  # of a grid of parts there are none
        if own and arguments.dataset == config["dataset"] and common.digest_keypoints(arguments.keypoints) != own:
            print(f"{arguments.keypoints} does not hold the key points that it was trained with")
    elif arguments.keypoints is not None:
        raise ValueError(f"--keypoints goes with a checkpoint of train_g2da.py, got {arguments.keypoints}")
    return common.open_dataset(arguments, arguments.split, (size[0], size[1]))
