"""Train G2DA on key points, evaluate it by the data set's protocol, and write what was found.

    python examples/train_g2da.py                                      # draws synthetic pedestrians first
    python examples/train_g2da.py --dataset regdb --root RegDB --keypoints RegDB-heatmaps --epochs 40

The key points of the synthetic pedestrians are known; ``vireid keypoints`` estimates those of other images. Into
--output go checkpoint.pt (after each epoch), TensorBoard logs, metrics.json, cmc.png and ranked.png. This script shows
the wiring; ``vireid train g2da`` has all other options, parts of a fixed grid in place of key points among them.
"""

import argparse
from pathlib import Path

from vireid.models import G2DA, G2DACriterion
from vireid.nn import SmallBackbone, TwoStream
from vireid.training import evaluate, extract_features, fit, launch, open_dataset, recipe_of, write_results


def main() -> None:
    """Train and evaluate as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="synthetic", help="synthetic, sysu, regdb or llcm")
    parser.add_argument("--root", type=Path, default=Path("runs/synthetic"), help="folder of the data set")
    parser.add_argument("--keypoints", type=Path, help="file or folder (default: keypoints.npz in --root)")
    parser.add_argument("--output", type=Path, default=Path("runs/g2da"))
    parser.add_argument("--epochs", type=int, default=recipe_of("g2da").epochs)
    parser.add_argument("--batches", type=int, help="per epoch (default: every image about once, at least 64)")
    given = parser.parse_args()

    # The recipe's small share of the learning rate is the graph's (our choice).
    recipe = recipe_of("g2da").replace(epochs=given.epochs, batches=given.batches)
    fabric = launch(recipe, output=given.output)
    if given.dataset == "synthetic":
        open_dataset("synthetic", root=given.root)  # draws the pedestrians and their key points
    keypoints = given.keypoints or given.root / "keypoints.npz"
    train = open_dataset(given.dataset, "train", root=given.root, size=recipe.size, keypoints=keypoints)
    test = open_dataset(given.dataset, "test", root=given.root, size=recipe.size, keypoints=keypoints)

    # Both modalities have a first block of their own. The feature size of 945 is a multiple of 3 heads, not of 4.
    backbone = TwoStream.from_sequential(SmallBackbone(), shared_from="refinements")
    model = G2DA(backbone, train.num_classes, heads=3, normalize_nodes=True)
    criterion = G2DACriterion(normalize_triplet=True, normalize_nodes=True)

    # The settings tell `load_model` and `vireid evaluate` how to build the model again.
    settings = {"method": "g2da", "dataset": given.dataset, "trial": 1}
    fit(model, criterion, train, recipe=recipe, fabric=fabric, output=given.output, settings=settings)

    features = extract_features(model, test)
    report = evaluate(test, features, {"graph": None})
    print(report)
    write_results(given.output, report, test, features, settings=settings)


if __name__ == "__main__":
    main()
