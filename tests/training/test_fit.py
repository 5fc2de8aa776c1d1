"""Training by name and of a model of one's own: files, resuming, seeds, messages."""

import pytest
import torch

from vireid.training import Recipe, build, extract_features, fit, launch, load_checkpoint, open_dataset, settings_of

TINY = Recipe(size=(32, 16), epochs=1, batches=2, identities=2, per_modality=2)


@pytest.mark.parametrize("method", ["cift", "saai", "g2da"])
def test_a_checkpoint_gives_back_its_model_and_its_settings(method, regdb, tmp_path):
    keypoints = regdb / "keypoints.npz" if method == "g2da" else None
    data = {
        split: open_dataset("regdb", split, root=regdb, size=TINY.size, keypoints=keypoints)
        for split in ("train", "test")
    }
    fabric = launch(TINY, output=tmp_path, accelerator="cpu")
    settings = {"method": method, **settings_of(method)}
    model, criterion = build(method, 4, TINY.size, settings_of(method))
    fit(model, criterion, data["train"], recipe=TINY, fabric=fabric, output=tmp_path, settings=settings)
    found = load_checkpoint(tmp_path / "checkpoint.pt")
    assert (found.method, found.settings, found.recipe, found.epoch, found.num_classes) == (
        method,
        settings,
        TINY,
        1,
        4,
    )
    assert torch.equal(extract_features(found.model, data["test"]), extract_features(model, data["test"]))
