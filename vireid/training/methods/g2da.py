"""G2DA and the rows of its ablation from plain settings."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vireid import models
from vireid._checks import check_option, check_size
from vireid.nn import part_grid as grid_of_parts
from vireid.training.methods._settings import Built, TransferSettings, build_backbone, in_two_streams

G2DA_ROWS = {
    "baseline": "B: L_b only",
    "ot": "+ O: D_ot",
    "cl": "+ CL: L_c",
    "graph": "+ G: the graph's feature and L_g, heads not fused",
    "g2da": "+ MF: heads fused",
}


@dataclass(frozen=True, kw_only=True)
class G2DASettings(TransferSettings):
    """Settings of G2DA or a row of its ablation.

    Attributes:
        ablation: a key of `G2DA_ROWS`.
        part_grid: (rows, columns) of fixed parts in place of each image's key points.
        two_stream: whether the backbone's first block is each modality's own.
        heads: L of the attention. Default: the paper's 4, or as many as divide the size of the features: 3 of 945.
        head_dim: size of a head. Default: the feature size divided by the heads.
        threshold: θ of the message fusion.
        magnitude: whether the fusion compares |γ| with θ; False: γ, as printed.
        fusion_sparsity: weight of Σ|γ|, so that some fall below θ (our choice).
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
        average: whether D_ot and L_c are means over pairs, or sums of them divided by the number of images.
        transfer: add CIFT's H2FT, the losses of its graph, and CRI (our choice).
        label_smoothing: of the cross-entropies.
    """

    ablation: str = "g2da"
    part_grid: Sequence[int] | None = None
    two_stream: bool = True
    heads: int | None = None
    head_dim: int | None = None
    threshold: float = 0.02
    magnitude: bool = True
    fusion_sparsity: float = 0.0
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
    average: Literal["pairs", "images"] = "pairs"
    transfer: bool = False
    label_smoothing: float = 0.0

    def build(self, num_classes: int, size: tuple[int, int]) -> Built:
        """Return the model and the criterion; images may have any size."""
        check_option("ablation", self.ablation, G2DA_ROWS)
        row = list(G2DA_ROWS).index(self.ablation)
        network = build_backbone(self.backbone, self.weights, self.last_stride)
        heads = self.heads
        if heads is None:
            heads = next(count for count in (4, 3, 2, 1) if models.feature_size(network) % count == 0)
        if self.two_stream:
            network = in_two_streams(network)
        grid = check_size("part_grid", self.part_grid) if self.part_grid else None
        parts, adjacency = grid_of_parts(*grid) if grid else (None, None)
        transfer, cri = self.transfer_of(models.feature_size(network)) if self.transfer else (None, None)
        model = models.G2DA(
            network,
            num_classes,
            adjacency=adjacency,
            parts=parts,
            graph=row >= 3,
            heads=heads,
            threshold=self.threshold if row >= 4 else -math.inf,
            normalize_nodes=self.normalize_nodes,
            transfer=transfer,
            head_dim=self.head_dim,
            magnitude=self.magnitude,
        )
        criterion = models.G2DACriterion(
            model,
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
            cri=cri,
            fusion_sparsity=self.fusion_sparsity,
            average=self.average,
            label_smoothing=self.label_smoothing,
        )
        return model, criterion
