"""SAAI's head, forward and backward: ours, the published formulation, what any head costs. See `heads.py`.

Everything behind the backbone in training, for the paper's batch: 16 identities x (4 visible + 4 infrared), a map of
2,048 channels and 18 x 9 pixels, 7 prototypes, so features of size 8 x 2,048 = 16,384; 395 identities (SYSU-MM01).

- ``vireid``: PrototypePooling, global average, DualBNNeck, MutualIdentityLoss, PartDiversityLoss, CenterSeparationLoss.
- ``loop``: the same parameters and the same numbers as the authors' code organizes them (our writing): T + E formed for
  every image, a loop over pairs of attention maps, a center computed once for each image of the batch, a loop over
  identities for the distances between centers, neck and classifiers on the rows of one modality and of the other. The
  pooling itself has no loop there, so it has none here.
- ``classifier``: global average, BNNeck, one linear classifier, cross-entropy; what a model has anyway.
- ``products``: the pooling's matrix products and the global average alone, with torch's operations: 4 p c n operations
  an image forward, twice as many backward.
- ``pass``: the map summed up; its gradient, all ones, written. No head can move less memory.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vireid import INFRARED, VISIBLE
from vireid.losses.centers import CenterSeparationLoss
from vireid.losses.identity import MutualIdentityLoss
from vireid.losses.parts import PartDiversityLoss
from vireid.nn.necks import BNNeck, DualBNNeck
from vireid.nn.prototypes import PrototypePooling

IDENTITIES_IN_BATCH, PER_MODALITY, CHANNELS, SIZE, PARTS, IDENTITIES = 16, 4, 2048, (18, 9), 7, 395
# The distance that half of the centers drawn here have: at the paper's 0.7 nothing would be seen of the push. It costs
# the same.
RHO2 = 56.0
PART_DIVERSITY = 0.5  # λ of Eq. 11
TITLE = "SAAI head, forward and backward"
NAMES = ("vireid", "loop", "classifier", "products", "pass")
BASES = ("classifier", "products")  # whose times the others are divided by
UNUSED = ("bare_neck.", "classifier.")  # parameters that the head itself does not have
SHAPE = f"map {CHANNELS} x {SIZE[0]} x {SIZE[1]}, {PARTS} parts"


class Heads(nn.Module):
    """Everything behind the backbone, and one batch for it: the parameters are shared by all contenders."""

    x: Tensor
    labels: Tensor
    modality: Tensor

    def __init__(self, device: torch.device, identities: int = IDENTITIES_IN_BATCH) -> None:
        super().__init__()
        dim = (PARTS + 1) * CHANNELS
        self.pooling = PrototypePooling(CHANNELS, parts=PARTS, size=SIZE)
        self.neck = DualBNNeck(dim)
        self.identity = MutualIdentityLoss(dim, IDENTITIES)
        self.part_diversity = PartDiversityLoss()
        self.center_separation = CenterSeparationLoss(rho2=RHO2)
        self.bare_neck = BNNeck(CHANNELS)
        self.classifier = nn.Linear(CHANNELS, IDENTITIES, bias=False)
        nn.init.normal_(self.identity.averaged, std=0.001)  # as after some steps: not the weights themselves
        labels = torch.randperm(IDENTITIES)[:identities].repeat_interleave(2 * PER_MODALITY)
        modality = torch.tensor([VISIBLE, INFRARED]).repeat(len(labels) // 2)
        centers = torch.randn(identities, CHANNELS, 1, 1).repeat_interleave(2 * PER_MODALITY, 0)
        self.register_buffer("x", torch.randn(len(labels), CHANNELS, *SIZE).add_(centers).relu_())
        self.register_buffer("labels", labels)
        self.register_buffer("modality", modality)
        self.to(device)
        self.x.requires_grad_()

    def loss(self, name: str) -> Tensor:
        """Run the forward pass of the contender ``name``."""
        loss: Tensor = getattr(self, {"classifier": "bare", "pass": "one_pass"}.get(name, name))()
        return loss

    def vireid(self) -> Tensor:
        """Compute the head by the library, wired as `vireid.models.SAAI` does."""
        similarity, pooled = self.pooling.pool(self.x)
        attention, pooled = similarity.sigmoid(), pooled.flatten(1)
        features = self.neck(pooled, self.modality)
        loss: Tensor = (
            self.identity(features, self.labels, self.modality)
            + PART_DIVERSITY * self.part_diversity(attention)
            + self.center_separation(pooled, self.labels)
        )
        return loss

    def loop(self) -> Tensor:
        """Compute the head in the published formulation."""
        pixels = self.x.flatten(2).transpose(1, 2)  # (B, n, c)
        position = self.pooling.position.flatten(1).T
        attention = (self.pooling.prototypes @ (pixels + position).transpose(1, 2)).sigmoid()
        parts = attention @ pixels / pixels.shape[1]
        pooled = torch.cat([parts.flatten(1), self.x.mean((2, 3))], 1)
        return (
            self._identity_loop(self._neck_loop(pooled))
            + PART_DIVERSITY * _diversity_loop(attention)
            + _separation_loop(pooled, self.labels, self.center_separation.rho1, self.center_separation.rho2)
        )

    def bare(self) -> Tensor:
        """Compute only the classifier."""
        return F.cross_entropy(self.classifier(self.bare_neck(self.x.mean((2, 3)))), self.labels)

    def products(self) -> Tensor:
        """Compute only the products of the pooling; the attention without sigmoid and position."""
        pixels = self.x.flatten(2)
        attention = self.pooling.prototypes.expand(len(pixels), -1, -1) @ pixels
        return (attention @ pixels.mT).mean() + self.x.mean((2, 3)).mean()

    def one_pass(self) -> Tensor:
        """Read the map once; backward writes its gradient once."""
        return self.x.sum()

    def _neck_loop(self, pooled: Tensor) -> Tensor:
        features = torch.empty_like(pooled)
        for m in (VISIBLE, INFRARED):
            rows = self.modality == m
            features[rows] = F.batch_norm(
                pooled[rows],
                self.neck.running_mean[m],
                self.neck.running_var[m],
                self.neck.weight[m],
                training=True,
                momentum=0.1,
                eps=self.neck.eps,
            )
        return features

    def _identity_loop(self, features: Tensor) -> Tensor:
        own, averaged, rate = self.identity.specific, self.identity.averaged, self.identity.rate
        with torch.no_grad():
            self.identity.averaged = averaged * (1 - rate) + own * rate
        loss = F.cross_entropy(features @ self.identity.shared.T, self.labels)
        for m in (VISIBLE, INFRARED):
            rows = self.modality == m
            logits = features[rows] @ own[m].T
            with torch.no_grad():
                target = (features[rows] @ self.identity.averaged[1 - m].T).softmax(1)
            loss = loss + F.cross_entropy(logits, self.labels[rows])  # a mean per modality
            loss = loss + F.kl_div(logits.log_softmax(1), target, reduction="sum") / len(features)
        return loss


def _diversity_loop(attention: Tensor) -> Tensor:
    parts = attention.shape[1]
    total = attention.new_zeros(())
    for i in range(parts):
        for j in range(i + 1, parts):
            total = total + (attention[:, i] - attention[:, j]).square().mean(1).sqrt().sum()
    return -2 * total / (len(attention) * parts * (parts - 1))


def _separation_loop(rows: Tensor, labels: Tensor, rho1: float, rho2: float) -> Tensor:
    centers = torch.stack([rows[labels == label].mean(0) for label in labels])
    pull = ((rows - centers).square().sum(1).sqrt() - rho1).clamp_min(0).mean()
    squares = centers.square().sum(1)
    distance = (squares[:, None] + squares - 2 * centers @ centers.T).clamp_min(1e-12).sqrt()
    # A row for each identity. Its mean over the other identities' images is that over their centers, as all have
    # equally many.
    first = [int((labels == label).nonzero()[0]) for label in labels.unique()]
    push = torch.stack([(rho2 - distance[i][labels != labels[i]]).clamp_min(0).mean() for i in first])
    return pull + push.mean()
