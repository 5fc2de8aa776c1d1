"""Checkpoints: read without executing anything, and opened with their model."""

import re
from pathlib import Path

import pytest
import torch

from vireid.training import extract_features, load_checkpoint, load_model, open_dataset, read_checkpoint


class Payload:
    """Pickles to a call that creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_the_payload_works(tmp_path):
    function, arguments = Payload(tmp_path / "proof").__reduce__()
    function(*arguments)
    assert (tmp_path / "proof").exists()


@pytest.mark.parametrize("kind", ["truncated", "empty", "text", "foreign", "pickled code", "pickled code beside"])
def test_a_damaged_foreign_or_hostile_checkpoint_is_refused(kind, trained, train, tmp_path):
    path = tmp_path / "checkpoint.pt"
    whole = (trained / "checkpoint.pt").read_bytes()
    if kind in ("truncated", "empty"):
        path.write_bytes(whole[: len(whole) // 2 if kind == "truncated" else 0])
    elif kind == "text":
        path.write_text("<html>404: not found</html>")
    elif kind == "foreign":
        torch.save({"state_dict": {"weight": torch.zeros(2)}}, path)
    elif kind == "pickled code":
        torch.save(Payload(tmp_path / "executed"), path)
    else:
        torch.save(read_checkpoint(trained / "checkpoint.pt") | {"more": Payload(tmp_path / "executed")}, path)
    before = path.read_bytes()
    expected = "is not a checkpoint of vireid" if kind == "foreign" else "is not a readable checkpoint"
    for way in (load_model, lambda path: train(path.parent, resume=True), lambda path: train(path.parent)):
        with pytest.raises(ValueError, match=re.escape(f"{path} {expected}")) as caught:
            way(path)
        assert "False" not in str(caught.value)  # torch's own advice: load it without the safety
        assert not (tmp_path / "executed").exists()
        assert path.read_bytes() == before


@pytest.mark.parametrize("method", ["cift", "saai", "g2da", "agw"])
def test_a_checkpoint_gives_back_its_model_and_its_settings(method, train, regdb, recipe, tmp_path):
    """Of a run with settings other than the defaults, whose model differs from theirs."""
    settings = {
        "cift": {"ablation": "gft"},
        "saai": {"parts": 3},
        "g2da": {"part_grid": [3, 1], "heads": 5},
        "agw": {"ablation": "hct"},
    }[method]
    recipe = recipe.replace(epochs=1, lr_shares={"backbone": 0.5})
    model = train(tmp_path, method, recipe=recipe, kept={"trial": 1}, **settings)
    kept = {"method": method, "dataset": "regdb", "trial": 1, **settings}
    found = load_checkpoint(tmp_path / "checkpoint.pt")
    assert found[1:] == (method, kept, recipe, 1, 4)
    assert not any(part.training for part in found.model.modules())
    test = open_dataset("regdb", "test", root=regdb, size=recipe.size)
    assert torch.equal(extract_features(found.model, test), extract_features(model, test))


def test_what_cannot_be_built_is_named(trained, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at nowhere\.pt"):
        load_checkpoint("nowhere.pt")
    state = read_checkpoint(trained / "checkpoint.pt")
    for change, text in (
        ({"ablation": "best"}, "ablation must be one of 'baseline', 'gft', 'ubs', 'h2g', 'cri', 'shared', got 'best'"),
        ({"method": "other"}, r"odd\.pt must be of cift, saai, g2da, agw, got a checkpoint of 'other'"),
    ):
        torch.save(state | {"settings": state["settings"] | change}, tmp_path / "odd.pt")
        with pytest.raises(ValueError, match=text):
            load_checkpoint(tmp_path / "odd.pt")
    for change, text in (
        ({"num_classes": 10**12}, "num_classes must not exceed the model's numbers, got 1000000000000"),
        ({"num_classes": 5}, "size mismatch"),
        ({"num_classes": "4"}, "must hold num_classes as int, got str"),
        ({"recipe": {"speed": 3}}, "must hold the model of its settings: .*'speed'"),
        ({"recipe": [3]}, "must hold recipe as dict, got list"),
        ({"settings": 3}, "must hold settings as dict, got int"),
        ({"model": {"a": 3}}, "must hold tensors as the model's values"),
        ({"model": {}}, "must hold the model of its settings"),
    ):
        torch.save(state | change, tmp_path / "odd.pt")
        with pytest.raises(ValueError, match=rf"(?s)odd\.pt {text}|odd\.pt must hold the model .*{text}"):
            load_checkpoint(tmp_path / "odd.pt")
