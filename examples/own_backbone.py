"""Put H2FT, CRI and HCC into a model of your own, and train it with `vireid.training.fit`.

    python examples/own_backbone.py

The components take plain features (B, d): the network before them, its pooling and the other losses are yours. Here the
network is three convolutions; `vireid.nn.backbone` makes one of any network of torchvision or timm, as in
``MyModel(backbone("convnext_tiny", weights="imagenet"), num_classes)``.
"""

import itertools
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vireid.losses import CRILoss, hcc_loss
from vireid.models import feature_size
from vireid.nn import H2FT, H2FTOutput
from vireid.training import Recipe, evaluate, extract_features, fit, launch, open_dataset, read_checkpoint


class Output(NamedTuple):
    """Output of `MyModel`: `extract_features` reads ``features``, the criterion all."""

    features: Tensor
    transfer: H2FTOutput
    logits: Tensor


class Convolutions(nn.Sequential):
    """Maps (B, 64, H/8, W/8) of images (B, 3, H, W)."""

    out_channels = 64

    def __init__(self) -> None:
        widths = [3, 16, 32, self.out_channels]
        blocks = (
            (nn.Conv2d(a, b, 3, stride=2, padding=1), nn.BatchNorm2d(b), nn.ReLU())
            for a, b in itertools.pairwise(widths)
        )
        super().__init__(*itertools.chain.from_iterable(blocks))


class MyModel(nn.Module):
    """A backbone, average pooling, CIFT's feature transfer, a classifier of the transferred features."""

    def __init__(self, backbone: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.backbone, dim = backbone, feature_size(backbone)
        self.transfer = H2FT(dim, k=4)
        self.classifier = nn.Linear(dim, num_classes, bias=False)

    def forward(self, images: Tensor, modality: Tensor) -> Output:
        """Embed images (B, 3, H, W) of both modalities."""
        features = self.backbone(images).mean((2, 3))
        transfer = self.transfer(features, modality)
        return Output(features, transfer, self.classifier(transfer.query))


class MyCriterion(nn.Module):
    """Cross-entropy and HCC of the transferred features, and CIFT's counterfactual intervention."""

    def __init__(self, model: MyModel) -> None:
        super().__init__()
        self.shared = (model.transfer, model.classifier)  # a tuple: its parameters stay the model's
        self.cri = CRILoss(model.transfer.dim)

    def forward(self, output: Output, labels: Tensor, modality: Tensor) -> dict[str, Tensor]:
        """Return the named losses; "total" is minimized, all are logged."""
        transfer, classifier = self.shared
        losses = {
            "ce": F.cross_entropy(output.logits, labels),
            "hcc": hcc_loss(output.features, labels, modality, margin=0.6),
            "cri": self.cri(
                output.features, labels, modality, transfer=transfer, classifier=classifier, output=output.transfer
            ),
        }
        return losses | {"total": losses["ce"] + losses["hcc"] + losses["cri"]}


def main() -> None:
    """Train for a moment on synthetic pedestrians, evaluate, and read the checkpoint again."""
    recipe = Recipe(epochs=2, batches=16, lr=2e-3, lr_shares={"backbone": 0.5}, schedule="constant")
    output = Path("runs/own_backbone")
    fabric = launch(recipe, output=output)
    train = open_dataset("synthetic", "train", size=recipe.size)
    test = open_dataset("synthetic", "test", size=recipe.size)
    model = MyModel(Convolutions(), train.num_classes)
    fit(model, MyCriterion(model), train, recipe=recipe, fabric=fabric, output=output)
    features = extract_features(model, test, flip=True)
    print(evaluate(test, features, {"backbone": None, "transferred": model.transfer.distance}))

    again = MyModel(Convolutions(), train.num_classes)
    again.load_state_dict(read_checkpoint(output / "checkpoint.pt")["model"])
    assert torch.equal(extract_features(again, test, flip=True), features)


if __name__ == "__main__":
    main()
