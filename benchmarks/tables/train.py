"""Train one run of a table, as its run.json says, and write its features of the test split. Called by `runs.py`."""

import json
import sys
from pathlib import Path
from typing import Any

from vireid.data.features import save_features
from vireid.training import Recipe, build, extract_features, fit, launch, open_dataset, settings_of


def train(job: dict[str, Any], accelerator: str | None = None) -> None:
    """Train a model and write checkpoint.pt, TensorBoard's logs and features.npz into the job's folder.

    Args:
        job: "method", "root", "keypoints", "folder", "recipe", "resume", "accelerator" and, to keep in the checkpoint,
            "kept" with the settings.
        accelerator: Lightning Fabric's. Default: the job's.
    """
    folder, recipe, kept = Path(job["folder"]), Recipe(**job["recipe"]), job["kept"]
    settings = {name: kept[name] for name in settings_of(job["method"])}
    where = {"root": job["root"], "size": recipe.size, "trial": kept["trial"], "keypoints": job["keypoints"]}
    fabric = launch(recipe, output=folder, accelerator=accelerator or job["accelerator"])
    dataset = open_dataset(kept["dataset"], "train", **where)
    model, criterion = build(job["method"], dataset.num_classes, recipe.size, settings)
    fit(model, criterion, dataset, recipe=recipe, fabric=fabric, output=folder, resume=job["resume"], settings=kept)
    test = open_dataset(kept["dataset"], "test", **where)
    features = extract_features(model, test, flip=recipe.flip_test).cpu()
    about = test.ids, test.modality, test.cameras
    save_features(folder / "features.npz", features, *about, image_numbers=test.image_numbers)


if __name__ == "__main__":
    train(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
