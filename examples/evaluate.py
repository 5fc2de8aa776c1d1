"""Evaluate a checkpoint of a training script with the exact protocol, also on another data set.

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

import common
import train_saai
import trained


def main() -> None:
    """Evaluate as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="checkpoint.pt of train_cift.py, train_saai.py or train_g2da.py"
    )
    trained.add_options(parser)
    train_saai.add_aim_options(parser)
    parser.add_argument("--output", type=Path, default=Path("runs/evaluation"))
    parser.add_argument(
        "--save-features", type=Path, metavar="FILE", help="feature file to write, .npz or .safetensors"
    )
    arguments = parser.parse_args()
    if arguments.save_features is not None and arguments.save_features.suffix not in (".npz", ".safetensors"):
        parser.error(f"--save-features must end in .npz or .safetensors, got {str(arguments.save_features)!r}")

    model, method, config, epoch = trained.open_model(arguments.checkpoint, arguments.device)
    given = [key for key in train_saai.AIM_OPTIONS if getattr(arguments, key) != parser.get_default(key)]
    if given and method.name != "saai":
        options = ", ".join(f"--{key.replace('_', '-')}" for key in given)
        raise ValueError(
            f"{options} must be left out: AIM goes with a checkpoint of train_saai.py, not train_{method.name}.py"
        )
    dataset = trained.open_images(arguments, config, config["size"])
    ways = method.distances(model, arguments)
    print(f"{arguments.checkpoint}: {config['ablation']}, epoch {epoch}, trained on {config['dataset']}")
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
