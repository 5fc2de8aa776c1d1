"""Train CIFT, evaluate it by the data set's protocol, and write what was found.

    python examples/train_cift.py                                      # draws synthetic pedestrians first
    python examples/train_cift.py --dataset regdb --root RegDB --epochs 40

Into --output go checkpoint.pt (after each epoch), TensorBoard logs, metrics.json, cmc.png and ranked.png. This script
shows the wiring; ``vireid train cift`` has all other options, its ablation among them.
"""

import argparse
from pathlib import Path

from vireid.losses import CRILoss
from vireid.models import CIFT, CIFTCriterion, feature_size
from vireid.nn import H2FT, SmallBackbone
from vireid.training import evaluate, extract_features, fit, launch, open_dataset, recipe_of, write_results


def main() -> None:
    """Train and evaluate as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="synthetic", help="synthetic, sysu, regdb or llcm")
    parser.add_argument("--root", type=Path, help="folder of the data set (default: runs/synthetic)")
    parser.add_argument("--output", type=Path, default=Path("runs/cift"))
    parser.add_argument("--epochs", type=int, default=recipe_of("cift").epochs)
    parser.add_argument("--batches", type=int, help="per epoch (default: every image about once, at least 64)")
    given = parser.parse_args()

    recipe = recipe_of("cift").replace(epochs=given.epochs, batches=given.batches)
    fabric = launch(recipe, output=given.output)
    train = open_dataset(given.dataset, "train", root=given.root, size=recipe.size)
    test = open_dataset(given.dataset, "test", root=given.root, size=recipe.size)

    backbone = SmallBackbone()
    dim = feature_size(backbone)
    model = CIFT(backbone, train.num_classes, transfer=H2FT(dim, k=4, tau_hom=0.4, tau_het=0.2))
    criterion = CIFTCriterion(model, cri=CRILoss(dim))

    # The settings tell `load_model` and `vireid evaluate` how to build the model again.
    settings = {"method": "cift", "dataset": given.dataset, "trial": 1}
    fit(model, criterion, train, recipe=recipe, fabric=fabric, output=given.output, settings=settings)

    features = extract_features(model, test)
    report = evaluate(test, features, {"backbone": None, "transferred": model.transfer.distance})
    print(report)
    write_results(given.output, report, test, features, model.transfer.distance, settings=settings)


if __name__ == "__main__":
    main()
