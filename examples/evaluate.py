"""Evaluate a checkpoint of train_cift.py or train_saai.py with the exact protocol, also on another data set.

    python examples/evaluate.py --checkpoint runs/cift/checkpoint.pt                          # its own test split
    python examples/evaluate.py --checkpoint runs/cift/checkpoint.pt --dataset regdb --root RegDB --split all
    python examples/evaluate.py --checkpoint runs/saai/checkpoint.pt --k1 20 --k2 6 --aim-variant released

    python examples/evaluate.py --checkpoint runs/cift/checkpoint.pt --save-features features.npz
    vireid evaluate features.npz --protocol regdb --rerank aim --k1 8 --k2 2

Without --dataset and --trial, it is the data set and the split that the checkpoint was trained on.
Into --output go metrics.json, cmc.png and ranked.png. --save-features writes the backbone features (the graph layer's
depend on the gallery, so that no file can hold them) for the command line, which gives the same figures.
"""

import argparse
from pathlib import Path

import torch

import common
import train_cift
import train_saai

METHODS = {script.METHOD.name: script.METHOD for script in (train_cift, train_saai)}


def main() -> None:
    """Evaluate as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="checkpoint.pt of train_cift.py or train_saai.py"
    )
    common.add_data_options(parser)
    train_saai.add_aim_options(parser)
    parser.add_argument(
        "--split", choices=["test", "all"], default="test", help="all: every identity is a test identity"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=Path("runs/evaluation"))
    parser.add_argument(
        "--save-features", type=Path, metavar="FILE", help="feature file to write, .npz or .safetensors"
    )
    parser.set_defaults(dataset=None, trial=None)
    arguments = parser.parse_args()
    if arguments.save_features is not None and arguments.save_features.suffix not in (".npz", ".safetensors"):
        parser.error(f"--save-features must end in .npz or .safetensors, got {str(arguments.save_features)!r}")

    state = common.load_checkpoint(arguments.checkpoint)
    config = {**state["config"], "weights": None}  # the checkpoint holds the weights
    arguments.dataset = arguments.dataset or config["dataset"]
    if arguments.trial is None:  # another trial's test split holds identities that this one was trained on
        arguments.trial = config["trial"] if arguments.dataset == config["dataset"] else 1
    name = common.method_of(config)
    if name not in METHODS:
        raise ValueError(f"{arguments.checkpoint} must be of {' or '.join(METHODS)}, got a checkpoint of {name!r}")
    method = METHODS[name]
    given = [key for key in train_saai.AIM_OPTIONS if getattr(arguments, key) != parser.get_default(key)]
    if given and name != "saai":
        options = ", ".join(f"--{key.replace('_', '-')}" for key in given)
        raise ValueError(
            f"{options} must be left out: AIM goes with a checkpoint of train_saai.py, not train_{name}.py"
        )
    model, _ = method.build_model(config, state["identities"])
    model.load_state_dict(state["model"])
    model.to(arguments.device).eval()
    ways = method.distances(model, arguments)
    size = (config["size"][0], config["size"][1])
    dataset = common.open_dataset(arguments, arguments.split, size)
    print(f"{arguments.checkpoint}: {config['ablation']}, epoch {state['epoch']}, trained on {config['dataset']}")
    features = common.extract_features(model, dataset, workers=arguments.workers)
    if arguments.save_features is not None:
        common.write_features(arguments.save_features, dataset, features, common.trained_on(config))
    report = common.evaluate(dataset, features, ways, arguments)
    same_data = arguments.dataset == config["dataset"]
    if same_data and (arguments.split == "all" or arguments.trial != config["trial"]):
        print("if --root holds the data it was trained on, these figures include its training identities")
    common.write_results(report, dataset, features, list(ways.values())[-1], arguments, common.trained_on(config))


if __name__ == "__main__":
    main()
