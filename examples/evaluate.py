"""Evaluate a checkpoint of train_cift.py with the exact protocol, also on a data set it was not trained on.

    python examples/evaluate.py --checkpoint runs/cift/checkpoint.pt                          # its own test split
    python examples/evaluate.py --checkpoint runs/cift/checkpoint.pt --dataset regdb --root RegDB --split all

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
from train_cift import build_model, distances


def main() -> None:
    """Evaluate as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="checkpoint.pt of train_cift.py")
    common.add_data_options(parser)
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
    model, _ = build_model(config, state["identities"])
    model.load_state_dict(state["model"])
    model.to(arguments.device).eval()
    size = (config["size"][0], config["size"][1])
    dataset = common.open_dataset(arguments, arguments.split, size)
    print(f"{arguments.checkpoint}: {config['ablation']}, epoch {state['epoch']}, trained on {config['dataset']}")
    features = common.extract_features(model, dataset, workers=arguments.workers)
    if arguments.save_features is not None:
        common.write_features(arguments.save_features, dataset, features, common.trained_on(config))
    ways = distances(model)
    report = common.evaluate(dataset, features, ways, arguments)
    same_data = arguments.dataset == config["dataset"]
    if same_data and (arguments.split == "all" or arguments.trial != config["trial"]):
        print("if --root holds the data it was trained on, these figures include its training identities")
    common.write_results(report, dataset, features, list(ways.values())[-1], arguments, common.trained_on(config))


if __name__ == "__main__":
    main()
