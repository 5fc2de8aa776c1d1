"""Train a model of this library with PyTorch Lightning's Trainer.

    pip install pytorch-lightning
    python examples/lightning_module.py

`vireid.training.fit` needs Lightning Fabric only; with a `LightningModule` the Trainer's callbacks, loggers and
strategies are yours.
"""

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from vireid.data import CrossModalIdentitySampler, Sample, TrainAugmentation
from vireid.models import SAAI, SAAICriterion
from vireid.nn import SmallBackbone
from vireid.protocols import RegDB
from vireid.training import extract_features, open_dataset

SIZE = (64, 32)


class ReIDModule(pl.LightningModule):
    """SAAI and its criterion. Augmentation runs on the batch, on the device."""

    def __init__(self, num_classes: int, *, lr: float = 1e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = SAAI(SmallBackbone(), num_classes, size=(15, 7))
        self.criterion = SAAICriterion(self.model, center_separation=0.2, normalize_centers=True)
        self.augment = TrainAugmentation(SIZE, padding=4)

    def training_step(self, batch: Sample, number: int) -> Tensor:
        """Return the loss that is minimized, and log all."""
        images = self.augment(batch.image, batch.modality)
        losses: dict[str, Tensor] = self.criterion(self.model(images, batch.modality), batch.label, batch.modality)
        self.log_dict({f"loss/{name}": loss for name, loss in losses.items()})
        return losses["total"]

    def configure_optimizers(self) -> Any:
        """Return AdamW with a cosine schedule over the whole training."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams["lr"])
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def main() -> None:
    """Train for a moment on synthetic pedestrians, then evaluate."""
    pl.seed_everything(0)
    train = open_dataset("synthetic", "train", size=SIZE)
    test = open_dataset("synthetic", "test", size=SIZE)
    sampler = CrossModalIdentitySampler(train.labels, train.modality, batches=16)
    module = ReIDModule(train.num_classes)
    # The sampler knows its process, and draws new batches in each epoch: Lightning must not share them out again.
    trainer = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        default_root_dir="runs/lightning",
        use_distributed_sampler=False,
        logger=False,
        log_every_n_steps=1,
    )
    trainer.fit(module, DataLoader(train, batch_sampler=sampler))
    features = extract_features(module.model, test)
    print(RegDB("visible_to_infrared").evaluate(features, test.ids, test.modality))


if __name__ == "__main__":
    main()
