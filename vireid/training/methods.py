"""The methods that are trained by name: model and criterion from plain settings."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from vireid import models
from vireid._checks import check_at_least_zero, check_count, check_option, check_positive, check_size
from vireid._ops import evaluated
from vireid.losses import AffinityInferenceLoss, CRILoss
from vireid.nn import GFT, H2FT, SmallBackbone, TwoStream, resnet50
from vireid.nn import part_grid as grid_of_parts
from vireid.training.recipe import RECIPES, Recipe

Built = tuple[nn.Module, nn.Module]

CIFT_ROWS = {
    "baseline": "backbone only",
    "gft": "+ graph feature transfer over the whole batch",
    "ubs": "+ unbalanced scenario simulation: GFT on 1:N groups",
    "h2g": "+ homogeneous and heterogeneous graphs: H2FT",
    "cri": "+ counterfactual relation intervention: CIFT",
}
SAAI_ROWS = {
    "baseline": "no prototypes, one neck for both modalities, L_id only; a ResNet-50's map in 6 horizontal parts",
    "saai": "prototypes, a neck for each modality, L_id + L_cs + λ L_pd",
}
G2DA_ROWS = {
    "baseline": "B: L_b only",
    "ot": "+ O: D_ot",
    "cl": "+ CL: L_c",
    "graph": "+ G: the graph's feature and L_g, heads not fused",
    "g2da": "+ MF: heads fused",
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of every method; each class below adds its own.

    Attributes:
        backbone: "small", or "torchvision" or "timm" for their ResNet-50.
        weights: of the ResNet-50: "imagenet" or a local file.
    """

    backbone: Literal["small", "torchvision", "timm"] = "small"
    weights: str | None = None

    def build(self, num_classes: int, size: tuple[int, int]) -> Built:
        """Return the model and the criterion for images of ``size`` (H, W)."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class TransferSettings(Settings):
    """Settings of CIFT's transfer, its intervention, and of an alignment of parts.

    Attributes:
        k: neighbors of the graph, the image itself included.
        tau_hom: temperature within a modality.
        tau_het: temperature across modalities, and GFT's only one.
        samples: draws of CRI's counterfactual.
        detach_values: whether CRI trains the affinities only.
        alignment: weight of G2DA's D_ot between parts of a person's images (our choice); None leaves it out.
        part_grid: (rows, columns) of those parts. Default: (4, 3).
    """

    k: int = 4
    tau_hom: float = 0.4
    tau_het: float = 0.2
    samples: int = 1
    detach_values: bool = False
    alignment: float | None = None
    part_grid: Sequence[int] | None = None

    def transfer_of(self, dim: int) -> tuple[H2FT, CRILoss]:
        """Return CIFT's layer for features of size ``dim`` and the loss of its intervention."""
        layer = H2FT(dim, k=self.k, tau_hom=self.tau_hom, tau_het=self.tau_het)
        return layer, CRILoss(dim, samples=self.samples, detach_values=self.detach_values)

    def aligned(self, criterion: nn.Module) -> nn.Module:
        """Return the criterion, with G2DA's alignment added if there is a weight."""
        if self.alignment is None:
            if self.part_grid is not None:
                raise ValueError("part_grid goes with alignment, which was not given")
            return criterion
        check_positive("alignment", self.alignment)
        grid = check_size("part_grid", self.part_grid or (4, 3))
        return models.AlignedCriterion(criterion, weight=self.alignment, grid=grid)


@dataclass(frozen=True, kw_only=True)
class CIFTSettings(TransferSettings):
    """Settings of CIFT or a row of its ablation.

    Attributes:
        ablation: a key of `CIFT_ROWS`.
    """

    ablation: str = "cri"

    def build(self, num_classes: int, size: tuple[int, int]) -> Built:
        """Return the model and the criterion; images may have any size."""
        check_option("ablation", self.ablation, CIFT_ROWS)
        network = build_backbone(self.backbone, self.weights)
        if self.ablation == "baseline":
            return models.Baseline(network, num_classes), self.aligned(models.BaselineCriterion())
        dim = models.feature_size(network)
        if self.ablation in ("gft", "ubs"):
            layer = GFT(dim, k=self.k, tau=self.tau_het, unbalanced=self.ablation == "ubs")
            model, cri = models.CIFT(network, num_classes, transfer=layer), None
        else:
            transfer, cri = self.transfer_of(dim)
            model = models.CIFT(network, num_classes, transfer=transfer)
        return model, self.aligned(models.CIFTCriterion(model, cri=cri if self.ablation == "cri" else None))


@dataclass(frozen=True, kw_only=True)
class SAAISettings(TransferSettings):
    """Settings of SAAI or its baseline.

    Attributes:
        ablation: a key of `SAAI_ROWS`.
        parts: p, prototypes; 0 leaves them out, as the baseline does.
        position_in_values: whether parts are pooled from T + E instead of T.
        part_diversity: λ, the weight of L_pd; 0 leaves it out.
        center_separation: weight of L_cs, 1 in the paper; 0 leaves it out.
        normalize_centers: L_cs on rows of length 1. Its margins are lengths, and the paper's Eq. 5 does not scale the
            rows.
        affinity_loss: weight of AIM's loss (our choice); 0 leaves it out.
        amend: False: its control, the loss of the cosines only, without d*.
        transfer: add CIFT's H2FT, the losses of its graph, and CRI (our choice).
    """

    ablation: str = "saai"
    parts: int = 7
    position_in_values: bool = False
    part_diversity: float = 0.5
    center_separation: float = 0.2
    normalize_centers: bool = True
    affinity_loss: float = 0.0
    amend: bool = True
    transfer: bool = False

    def build(self, num_classes: int, size: tuple[int, int]) -> Built:
        """Return the model, whose position embedding is made for ``size``, and the criterion."""
        check_option("ablation", self.ablation, SAAI_ROWS)
        check_count("parts", self.parts, minimum=0)
        for name in ("part_diversity", "center_separation", "affinity_loss"):
            check_at_least_zero(name, getattr(self, name))
        if not self.amend and not self.affinity_loss:
            raise ValueError("amend=False goes with affinity_loss, which is 0")
        network = build_backbone(self.backbone, self.weights)
        baseline = self.ablation == "baseline"
        parts = 0 if baseline else self.parts
        grid = (6, 1) if baseline and not hasattr(network, "grid") else None
        graph = cri = affinity = None
        if self.transfer:
            graph, cri = self.transfer_of(
                models.feature_size(network, grid) + parts * models.feature_size(network, (1, 1))
            )
        if self.affinity_loss:
            # Cosines reach 1, amended scores more: each at the temperature that suited it in rough tries.
            affinity = AffinityInferenceLoss(amend=self.amend, temperature=0.3 if self.amend else 0.1)
        model = models.SAAI(
            network,
            num_classes,
            parts=parts,
            grid=grid,
            size=map_size(network, size),
            position_in_values=self.position_in_values,
            dual_neck=not baseline,
            transfer=graph,
        )
        criterion = models.SAAICriterion(
            model,
            part_diversity=0.0 if baseline else self.part_diversity,
            center_separation=0.0 if baseline else self.center_separation,
            normalize_centers=self.normalize_centers,
            affinity=affinity,
            affinity_weight=self.affinity_loss,
            cri=cri,
        )
        return model, self.aligned(criterion)


@dataclass(frozen=True, kw_only=True)
class G2DASettings(Settings):
    """Settings of G2DA or a row of its ablation.

    Attributes:
        ablation: a key of `G2DA_ROWS`.
        part_grid: (rows, columns) of fixed parts in place of each image's key points.
        two_stream: whether the backbone's first block is each modality's own.
        heads: L of the attention. Default: the paper's 4, or 3 with the small backbone, whose size is 945.
        threshold: θ of the message fusion.
        normalize_nodes: bring all nodes to one length before the graph and in L_c (our choice).
        base: λ_b, weight of L_b.
        normalize_triplet: triplets of L_b on features of length 1 (our choice).
        transport: λ_o, weight of D_ot.
        contrastive: λ_c, weight of L_c.
        graph: λ_g, weight of L_g.
        epsilon: ε of L_c.
        phi: φ of D_ot: 0 structure only, 1 features only.
        structure: difference of structure in D_ot.
        pairs: pairs that D_ot aligns.
    """

    ablation: str = "g2da"
    part_grid: Sequence[int] | None = None
    two_stream: bool = True
    heads: int | None = None
    threshold: float = 0.02
    normalize_nodes: bool = True
    base: float = 1.0
    normalize_triplet: bool = True
    transport: float = 1.0
    contrastive: float = 0.1
    graph: float = 1.0
    epsilon: float = 2.0
    phi: float = 0.5
    structure: Literal["abs", "square"] = "abs"
    pairs: Literal["all", "one_to_one"] = "all"

    def build(self, num_classes: int, size: tuple[int, int]) -> Built:
        """Return the model and the criterion; images may have any size."""
        check_option("ablation", self.ablation, G2DA_ROWS)
        row = list(G2DA_ROWS).index(self.ablation)
        network = build_backbone(self.backbone, self.weights)
        heads = (3 if isinstance(network, SmallBackbone) else 4) if self.heads is None else self.heads
        if self.two_stream and isinstance(network, SmallBackbone):
            network = TwoStream.from_sequential(network, shared_from="refinements")
        elif self.two_stream:
            network = TwoStream.from_resnet(network)
        grid = check_size("part_grid", self.part_grid) if self.part_grid else None
        parts, adjacency = grid_of_parts(*grid) if grid else (None, None)
        model = models.G2DA(
            network,
            num_classes,
            adjacency=adjacency,
            parts=parts,
            graph=row >= 3,
            heads=heads,
            threshold=self.threshold if row >= 4 else -math.inf,
            normalize_nodes=self.normalize_nodes,
        )
        criterion = models.G2DACriterion(
            base=self.base,
            transport=self.transport if row >= 1 else 0.0,
            contrastive=self.contrastive if row >= 2 else 0.0,
            graph=self.graph,
            epsilon=self.epsilon,
            normalize_triplet=self.normalize_triplet,
            normalize_nodes=self.normalize_nodes,
            phi=self.phi,
            loss=self.structure,
            pairs=self.pairs,
        )
        return model, criterion


class Method(NamedTuple):
    """A method that is trained by name: the class of its settings, and a recipe that suits it on two CPU cores."""

    settings: type[Settings]
    recipe: Recipe


METHODS = {
    "cift": Method(CIFTSettings, RECIPES["small"]),
    "saai": Method(SAAISettings, RECIPES["small"]),
    # The graph learns at a share of the rate (our choice; 1 in the paper).
    "g2da": Method(G2DASettings, RECIPES["small"].replace(lr_shares={"attention": 0.03, "aggregation": 0.03})),
}
"""The methods by name."""


def settings_of(method: str) -> dict[str, object]:
    """Return the settings of a method with their defaults, which are those of the small recipe."""
    check_option("method", method, METHODS)
    return {field.name: field.default for field in fields(METHODS[method].settings)}


def build(method: str, num_classes: int, size: tuple[int, int], settings: Mapping[str, object] | None = None) -> Built:
    """Build the model and the criterion of a method; its weights come from PyTorch's generator.

    Args:
        method: "cift", "saai" or "g2da".
        num_classes: number of training identities.
        size: (H, W) of the images.
        settings: those that differ from `settings_of`.

    Raises:
        ValueError: if a value is out of its range.
        TypeError: if the method has no such setting.
    """
    check_option("method", method, METHODS)
    values: dict[str, Any] = dict(settings or {})
    return METHODS[method].settings(**values).build(num_classes, size)


def build_backbone(name: str, weights: str | None) -> nn.Module:
    """Return the small backbone ("small") or the ResNet-50 of "torchvision" or "timm"."""
    check_option("backbone", name, ("small", "torchvision", "timm"))
    if name != "small":
        return resnet50(source=name, weights=weights)
    if weights:
        raise ValueError("weights goes with backbone torchvision or timm, not with small")
    return SmallBackbone()


@torch.no_grad()
def map_size(backbone: nn.Module, size: tuple[int, int]) -> tuple[int, int]:
    """Return (h, w) of the backbone's map of images of ``size`` (H, W)."""
    maps = evaluated(backbone)(torch.zeros(1, 3, *check_size("size", size)))
    return maps.shape[2], maps.shape[3]
