"""CIFT's heads, forward and backward: ours, a plain loop over the 2N groups, the bare classifier. See `heads.py`.

The batch is the paper's: 8 identities x (4 visible + 4 infrared), features of size 2,048, 395 identities (SYSU-MM01).

- ``vireid``: BNNeck, classifier, H2FT, graph classifier, HCC x 3, CRI; every cross-entropy.
- ``loop``: the same modules and the same numbers, with one graph built for each of the 64 groups, twice (for X and for
  CRI's X*), and the HCC losses image by image.
- ``classifier``: BNNeck, linear classifier, cross-entropy; what a model has anyway.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vireid import INFRARED, VISIBLE
from vireid.losses import CRILoss, HCCLoss, query_gallery_cross_entropy
from vireid.nn import H2FT, BNNeck

IDENTITIES_IN_BATCH, PER_MODALITY, DIM, IDENTITIES = 8, 4, 2048, 395
TITLE = "CIFT heads, forward and backward"
NAMES = ("vireid", "loop", "classifier")
BASES = ("classifier",)  # whose times the others are divided by
UNUSED: tuple[str, ...] = ()  # parameters that the heads themselves do not have
SHAPE = f"d {DIM}"


class Heads(nn.Module):
    """Everything behind the backbone, and one batch for it: the parameters are shared by all three contenders."""

    def __init__(self, device: torch.device, identities: int = IDENTITIES_IN_BATCH) -> None:
        super().__init__()
        self.neck = BNNeck(DIM)
        self.classifier = nn.Linear(DIM, IDENTITIES, bias=False)
        self.transfer = H2FT(DIM)
        self.graph_classifier = nn.Linear(DIM, IDENTITIES, bias=False)
        self.cri = CRILoss(DIM)
        self.hcc_features = HCCLoss(margin=0.6)
        self.hcc_logits = HCCLoss(margin=6.0, distance="kl")
        names = torch.randperm(IDENTITIES)[:identities]
        labels = names.repeat_interleave(2 * PER_MODALITY)
        modality = torch.tensor([VISIBLE, INFRARED]).repeat(len(labels) // 2)
        centers = torch.randn(identities, DIM).repeat_interleave(2 * PER_MODALITY, 0)
        self.x: Tensor
        self.labels: Tensor
        self.modality: Tensor
        self.register_buffer("x", (centers + torch.randn(len(labels), DIM)).relu())
        self.register_buffer("labels", labels)
        self.register_buffer("modality", modality)
        self.to(device)
        self.x.requires_grad_()

    def loss(self, name: str) -> Tensor:
        """Run the forward pass of the contender ``name``."""
        return {"vireid": self.vireid, "loop": self.loop, "classifier": self.bare}[name]()

    def vireid(self) -> Tensor:
        """Compute all heads by the library."""
        features = self.neck(self.x)
        logits = self.classifier(features)
        out = self.transfer(features, self.modality)
        query, gallery = self.graph_classifier(out.query), self.graph_classifier(out.gallery)
        labels = self.labels[out.gallery_index]
        tie: Tensor = self.cri(
            features, self.labels, self.modality, transfer=self.transfer, classifier=self.graph_classifier, output=out
        )
        return (
            F.cross_entropy(logits, self.labels)
            + self.hcc_features(features, self.labels)
            + self.hcc_logits(logits, self.labels)
            + query_gallery_cross_entropy(query, self.labels, gallery=gallery, gallery_index=out.gallery_index)
            + self.hcc_logits(torch.cat([query, gallery]), torch.cat([self.labels, labels]))
            + tie
        )

    def loop(self) -> Tensor:
        """Compute all heads with a loop over the groups and over the images."""
        features = self.neck(self.x)
        logits = self.classifier(features)
        values = self.transfer.value(features)
        y_g = self.graph_classifier(self._groups(values, values))
        z = torch.randn_like(features)
        self.transfer.value.eval()
        keys = self.transfer.value(self.cri.X_sigma * z + self.cri.X_mu)
        self.transfer.value.train()
        effect = y_g - self.graph_classifier(self._groups(keys, values))
        twice = torch.cat([self.labels, self.labels])
        return (
            F.cross_entropy(logits, self.labels)
            + _hcc_loop(F.normalize(features), self.labels, 0.6, _euclidean)
            + _hcc_loop(logits.softmax(1), self.labels, 6.0, _kl)
            + F.cross_entropy(y_g, twice)
            + _hcc_loop(y_g.softmax(1), twice, 6.0, _kl)
            + F.cross_entropy(effect, twice)
        )

    def bare(self) -> Tensor:
        """Compute only the classifier."""
        return F.cross_entropy(self.classifier(self.neck(self.x)), self.labels)

    def _groups(self, keys: Tensor, values: Tensor) -> Tensor:
        """Return (2B, d): f_q of each image, then F_G of each image, the mean of the (equal) ones of all its groups."""
        f_q: list[Tensor] = []
        f_g: list[list[Tensor]] = [[] for _ in keys]
        for q in range(len(keys)):
            gallery = (self.modality != self.modality[q]).nonzero().flatten()
            rows = torch.cat([gallery.new_tensor([q]), gallery])
            f_q.append(self._transfer(keys[rows], values[rows], self.transfer.tau_het)[0])
            for g, row in zip(
                gallery.tolist(), self._transfer(keys[gallery], values[gallery], self.transfer.tau_hom), strict=True
            ):
                f_g[g].append(row)
        return torch.stack(f_q + [torch.stack(rows).mean(0) for rows in f_g])

    def _transfer(self, keys: Tensor, values: Tensor, tau: float) -> Tensor:
        unit = F.normalize(keys)
        similarity = (unit @ unit.T / tau).exp()
        kept, index = similarity.topk(self.transfer.k, dim=1)
        affinity = torch.zeros_like(similarity).scatter(1, index, kept)
        return affinity / affinity.sum(1, keepdim=True) @ values


def _euclidean(image: Tensor, center: Tensor) -> Tensor:
    return (image - center).square().sum().sqrt()


def _kl(image: Tensor, center: Tensor) -> Tensor:
    return (image * (image.log() - center.log())).sum()


def _hcc_loop(rows: Tensor, labels: Tensor, margin: float, distance: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    centers = {identity: rows[labels == identity].mean(0) for identity in labels.unique().tolist()}
    losses = []
    for row, label in zip(rows, labels.tolist(), strict=True):
        pushes = [(margin - distance(row, c)).clamp_min(0) for identity, c in centers.items() if identity != label]
        losses.append(distance(row, centers[label]) + torch.stack(pushes).mean())
    return torch.stack(losses).mean()
