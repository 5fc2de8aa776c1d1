"""Train SAAI, evaluate it with and without AIM by the data set's protocol, and write what was found.

    python examples/train_saai.py                                      # draws synthetic pedestrians first
    python examples/train_saai.py --dataset regdb --root RegDB --epochs 40

Into --output go checkpoint.pt (after each epoch), TensorBoard logs, metrics.json, cmc.png and ranked.png. This script
shows the wiring; ``vireid train saai`` has all other options, its ablation among them.
"""

import argparse
from pathlib import Path

from vireid.models import SAAI, SAAICriterion
from vireid.nn import SmallBackbone
from vireid.rerank import AIM
from vireid.training import evaluate, extract_features, fit, launch, open_dataset, recipe_of, write_results


def main() -> None:
    """Train and evaluate as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="synthetic", help="synthetic, sysu, regdb or llcm")
    parser.add_argument("--root", type=Path, help="folder of the data set (default: runs/synthetic)")
    parser.add_argument("--output", type=Path, default=Path("runs/saai"))
    parser.add_argument("--epochs", type=int, default=recipe_of("saai").epochs)
    parser.add_argument("--batches", type=int, help="per epoch (default: every image about once, at least 64)")
    given = parser.parse_args()

    recipe = recipe_of("saai").replace(epochs=given.epochs, batches=given.batches)
    fabric = launch(recipe, output=given.output)
    train = open_dataset(given.dataset, "train", root=given.root, size=recipe.size)
    test = open_dataset(given.dataset, "test", root=given.root, size=recipe.size)

    # The size is that of the backbone's map, which the position embedding is made for; any other is interpolated.
    model = SAAI(SmallBackbone(), train.num_classes, parts=7, size=(15, 7))
    criterion = SAAICriterion(model, part_diversity=0.5, center_separation=0.2, normalize_centers=True)

    # The settings tell `load_model` and `vireid evaluate` how to build the model again.
    settings = {"method": "saai", "dataset": given.dataset, "trial": 1}
    fit(model, criterion, train, recipe=recipe, fabric=fabric, output=given.output, settings=settings)

    features = extract_features(model, test)
    k1, k2 = (4, 1) if given.dataset == "sysu" else (8, 2)  # the paper's for SYSU-MM01 and RegDB
    rerank = AIM(k1=k1, k2=k2)
    report = evaluate(test, features, {"backbone": None, "backbone + AIM": rerank})
    print(report)
    write_results(given.output, report, test, features, rerank, settings=settings)


if __name__ == "__main__":
    main()
