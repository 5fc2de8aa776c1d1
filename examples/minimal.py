"""Train and evaluate CIFT in plain PyTorch: data set, sampler, model, criterion, steps, protocol.

    python examples/minimal.py

Synthetic pedestrians stand for a data set: `SYSUMM01Dataset` and `LLCMDataset` are read in the same way.
"""

import torch
from torch.utils.data import DataLoader

from vireid.data import CrossModalIdentitySampler, EvalTransform, RegDBDataset, TrainAugmentation, generate_synthetic
from vireid.losses import CRILoss
from vireid.models import CIFT, CIFTCriterion, feature_size
from vireid.nn import SmallBackbone
from vireid.protocols import RegDB

SIZE, EPOCHS, IDENTITIES = (64, 32), 2, 16


def main() -> None:
    """Train a small model for a moment, then rank the test images."""
    torch.manual_seed(0)
    root = generate_synthetic("runs/minimal", layout="regdb", identities=IDENTITIES, images_per_camera=4)
    train = RegDBDataset(root, "train", size=SIZE, cache=True)
    test = RegDBDataset(root, "test", size=SIZE)

    # Every batch holds 4 identities with 2 visible and 2 infrared images of each.
    sampler = CrossModalIdentitySampler(train.labels, train.modality, identities=4, per_modality=2, batches=8)
    loader = DataLoader(train, batch_sampler=sampler)
    augment = TrainAugmentation(SIZE, padding=4)

    backbone = SmallBackbone()
    model = CIFT(backbone, train.num_classes)
    criterion = CIFTCriterion(model, cri=CRILoss(feature_size(backbone)))
    optimizer = torch.optim.AdamW([*model.parameters(), *criterion.parameters()], lr=1e-3)

    for epoch in range(EPOCHS):
        for batch in loader:
            output = model(augment(batch.image, batch.modality), batch.modality)
            losses = criterion(output, batch.label, batch.modality)
            optimizer.zero_grad()
            losses["total"].backward()
            optimizer.step()
        print(f"epoch {epoch + 1}: " + ", ".join(f"{name} {loss.item():.2f}" for name, loss in losses.items()))

    model.eval()
    transform = EvalTransform()
    with torch.no_grad():
        batches = DataLoader(test, batch_size=64)
        features = torch.cat([model(transform(b.image), b.modality).features for b in batches])
    for rerank in (None, model.transfer.distance):
        print(RegDB("visible_to_infrared").evaluate(features, test.ids, test.modality, rerank=rerank))


if __name__ == "__main__":
    main()
