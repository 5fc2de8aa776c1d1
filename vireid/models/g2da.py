"""G2DA: geometry-guided dual alignment (Wan et al., 2021)."""

from math import sqrt
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vireid._checks import (
    check_at_least_zero,
    check_count,
    check_flag,
    check_fraction,
    check_module,
    check_number,
    check_tensor,
)
from vireid._ops import cross_entropy, normalize_rows
from vireid.losses import CRILoss, CrossModalityTripletLoss, GraphOTLoss, PartContrastiveLoss
from vireid.losses.parts import Average
from vireid.models._common import Embedder, add_total, linear_classifier, transfer_classifier, transferred
from vireid.models.cift import losses_of_transfer
from vireid.nn import (
    PERSON_13,
    BNNeck,
    H2FTOutput,
    MessageFusionAttention,
    SkeletonAggregation,
    keypoint_pooling,
    present_keypoints,
)
from vireid.nn.transfer import FeatureTransfer


class G2DAOutput(NamedTuple):
    """Output of `G2DA`, in training and in evaluation.

    Attributes:
        features: (B, d) the features that rank at test time: V_G, or BN(GAP(F)) of a model without graph.
        pooled: (B, d) GAP(F), before the neck.
        logits: (B, C) of BN(GAP(F)).
        nodes: (B, K + 1, c) the nodes that are aligned: key points (Eq. 2), and BN(GAP(F)) last. Of a model that
            stacks cells, GAP(F) is last.
        mask: (B, K + 1) bool, False for a key point that the image does not show.
        graph_logits: (B, C) of V_G, or None without graph.
        feature_map: (B, c, h, w) of the backbone, for losses on parts; None if left out.
        fusion_scales: (K + 1, L, h) γ of the message fusion, with gradient, or None without graph.
        transfer: with CIFT's transfer on top: f_q, F_G and the affinities of this batch; else None.
        query_logits: (B, C) Y_g of f_q, or None.
        gallery_logits: (R, C) Y_g of F_G, or None.
    """

    features: Tensor
    pooled: Tensor
    logits: Tensor
    nodes: Tensor
    mask: Tensor
    graph_logits: Tensor | None = None
    feature_map: Tensor | None = None
    fusion_scales: Tensor | None = None
    transfer: H2FTOutput | None = None
    query_logits: Tensor | None = None
    gallery_logits: Tensor | None = None


class G2DA(Embedder):
    """Backbone, skeleton graph, message fusion attention, aggregation (G2DA §III).

        v_k = mean of F under heatmap k,   v_{K+1} = BN(GAP(F)),   V_G = BN(GAP(F)) + Σ_i ω_i v̄_i

    Args:
        backbone: `vireid.nn.TwoStream` as in the paper, or any module (B, 3, H, W) -> (B, c, h, w), shared by both
            modalities.
        num_classes: number C of training identities.
        adjacency: (K + 1, K + 1) bool, see `vireid.nn.skeleton_adjacency`. Default: the paper's 13 key points.
        parts: (K, H, W) heatmaps shared by all images, such as those of `vireid.nn.part_grid`, with its adjacency.
            Then the model needs images and modality only. Default: each image has its own.
        graph: False leaves the graph's layers out, and the features are BN(GAP(F)) (Table III's rows before "G").
        heads: L of `vireid.nn.MessageFusionAttention`; d must be a multiple, or ``head_dim`` given.
        threshold: θ of its message fusion; -inf fuses nothing (Table III's "G" without "MF").
        normalize_nodes: scale every key point's node to the length √d, about that of BN(GAP(F)), before the graph (our
            choice; off by default). A mean under a heatmap with one peak is about a hundredth of the map's values, so
            that the global node, joined to all, would drown the others.
        dim: feature size d, c · rows · columns of the grid. Default: c is the backbone's ``out_channels``.
        grid: (rows, columns) of the means that the features stack, and with them the nodes that go through the graph's
            layers. Default: the backbone's ``grid`` where it has one, else (1, 1) as in the paper. The nodes that are
            aligned are not stacked: nodes in two places would share no cell, all be equally far from each other, and
            have no structure.
        transfer: as in `AGW`; CIFT's `H2FT` makes the model CIFT on G2DA's features (our choice; in no paper).
        head_dim: size of a head, as in `vireid.nn.MessageFusionAttention`, like the next one.
        magnitude: likewise.

    Raises:
        ValueError: if the size is neither given nor known, heads do not divide it, ``parts`` are not as many as the
            adjacency has key points or the transfer is of another size; when called, if the backbone returns another
            size, or there are no heatmaps.
        TypeError: if the backbone is not a module, ``parts`` are not a tensor or a size is not an integer.
    """

    parts: Tensor | None

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        adjacency: Tensor | None = None,
        parts: Tensor | None = None,
        graph: bool = True,
        heads: int = 4,
        threshold: float = 0.02,
        normalize_nodes: bool = False,
        dim: int | None = None,
        grid: tuple[int, int] | None = None,
        transfer: FeatureTransfer | None = None,
        head_dim: int | None = None,
        magnitude: bool = True,
    ) -> None:
        super().__init__(backbone, num_classes, grid)
        adjacency = PERSON_13.adjacency() if adjacency is None else adjacency
        check_tensor("adjacency", adjacency, "K+1 K+1", kind="bool")
        check_flag("graph", graph)
        self.key_points, self.normalize_nodes = len(adjacency) - 1, check_flag("normalize_nodes", normalize_nodes)
        if parts is not None:
            check_tensor("parts", parts, "K H W", K=self.key_points)
        self.dim = self.feature_size(dim)
        self.register_buffer("parts", parts, persistent=False)
        self.neck = BNNeck(self.dim)
        self.classifier = linear_classifier(self.dim, self.num_classes)
        self.attention = self.aggregation = self.graph_classifier = None
        check_count("heads", heads)
        check_number("threshold", threshold)
        check_flag("magnitude", magnitude)
        if head_dim is not None:
            check_count("head_dim", head_dim)
        self.transfer, self.transfer_classifier = transfer, transfer_classifier(transfer, self.dim, self.num_classes)
        if graph:
            self.attention = MessageFusionAttention(
                self.dim,
                heads=heads,
                adjacency=adjacency,
                threshold=threshold,
                head_dim=head_dim,
                magnitude=magnitude,
            )
            self.aggregation = SkeletonAggregation(self.dim, len(adjacency))
            self.graph_classifier = linear_classifier(self.dim, self.num_classes)

    def forward(self, images: Tensor, modality: Tensor, heatmaps: Tensor | None = None) -> G2DAOutput:
        """Embed images.

        Args:
            images: (B, 3, H, W).
            modality: (B,) integers, 0 visible, 1 infrared, which a `TwoStream` backbone is given too.
            heatmaps: (B, K, h, w) of any resolution; not needed by a model with ``parts``.

        Returns:
            `G2DAOutput`.

        Raises:
            ValueError: if the heatmaps are missing or not K, or the backbone returns another size.
        """
        given = self.parts if heatmaps is None else heatmaps
        if given is None:
            raise ValueError(f"heatmaps must be (B, {self.key_points}, h, w) for a model without parts, got None")
        maps = self.feature_map(images, modality, self.dim // self.cells)
        heatmaps = given.expand(maps.shape[0], -1, -1, -1) if heatmaps is None else heatmaps
        check_tensor("heatmaps", heatmaps, "B K h w", B=maps.shape[0], K=self.key_points)
        pooled = self.stack_cells(maps)
        whole = self.neck(pooled)
        logits = self.classifier(whole)
        local = keypoint_pooling(maps, heatmaps)
        mask = F.pad(present_keypoints(heatmaps), (0, 1), value=True)
        nodes = _graph(local, whole if self.cells == 1 else maps.mean((2, 3)))
        features, graph_logits, scales = whole, None, None
        if self.attention is not None and self.aggregation is not None and self.graph_classifier is not None:
            if self.cells > 1:
                local = keypoint_pooling(maps, heatmaps, grid=self.grid)
            if self.normalize_nodes:
                local = sqrt(self.dim) * normalize_rows(local)
            features = self.aggregation(pooled, self.attention(_graph(local, whole), mask))
            graph_logits, scales = self.graph_classifier(features), self.attention.scales()
        graph = transferred(self.transfer, self.transfer_classifier, features, modality)
        return G2DAOutput(features, pooled, logits, nodes, mask, graph_logits, maps, scales, *graph)


def _graph(local: Tensor, whole: Tensor) -> Tensor:
    """Return the nodes (B, K + 1, d), the global one last."""
    return torch.cat([local, whole[:, None].to(local.dtype)], 1)


class G2DACriterion(nn.Module):
    """L = λ_b (CE + L_tri) + λ_o D_ot + λ_c L_c + λ_g L_g (G2DA, Eq. 13), and losses that may be added to it.

    L_b: cross-entropy behind the neck and triplets before it, as is usual with a BNNeck (our choice; the paper does not
    say). L_g: cross-entropy of V_G, for a model with graph. A weight of 0 leaves its loss out. A model with a transfer
    has its losses too, as in `AGWCriterion`.

    In several processes a criterion with ``cri`` and its model belong in one module that is wrapped; see
    `vireid.losses.CRILoss`.

    Args:
        model: the `G2DA`, if it has a transfer, whose losses depend on its kind and which L_tie shares. It is not
            registered here: its parameters belong to the model only. So copy both together, or make a new criterion for
            a copied model.
        base: λ_b.
        transport: λ_o.
        contrastive: λ_c.
        graph: λ_g.
        margin: of L_tri.
        epsilon: ε of L_c.
        normalize_triplet: L_tri of features of length 1 (our choice; off by default, as the paper does not mention it).
            The margin is a length, and the length of GAP(F) depends on the backbone.
        normalize_nodes: L_c of nodes of length 1 (our choice; off by default). No two are then farther apart than ε.
        phi: φ of D_ot.
        loss: difference of structure in D_ot, ``"abs"`` or ``"square"``.
        pairs: pairs that D_ot aligns, see `vireid.losses.GraphOTLoss`.
        cri: CIFT's L_tie, for a model with ``transfer``; None leaves it out.
        fusion_sparsity: weight of Σ|γ| over the message fusion's scales, so that some fall below its θ (our choice; 0
            by default, as the paper prints no such term, and then hardly any does).
        average: of D_ot and L_c, over the ``"pairs"`` (our choice) or the ``"images"`` of the batch, see
            `vireid.losses.PartContrastiveLoss`.
        label_smoothing: of the cross-entropies, in [0, 1]; 0 in the paper.

    Raises:
        ValueError: if a number is out of its range, there is ``cri`` and no model with a transfer, or, when called, no
            loss is left.
        TypeError: if an option is not a number.
    """

    def __init__(
        self,
        model: G2DA | None = None,
        *,
        base: float = 1.0,
        transport: float = 1.0,
        contrastive: float = 0.1,
        graph: float = 1.0,
        margin: float = 0.3,
        epsilon: float = 2.0,
        normalize_triplet: bool = False,
        normalize_nodes: bool = False,
        phi: float = 0.5,
        loss: Literal["abs", "square"] = "abs",
        pairs: Literal["all", "one_to_one"] = "all",
        cri: CRILoss | None = None,
        fusion_sparsity: float = 0.0,
        average: Average = "pairs",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.label_smoothing = check_fraction("label_smoothing", label_smoothing)
        if model is not None:
            check_module("model", model, G2DA)
        self.cri = cri
        transfer, classifier = (None, None) if model is None else (model.transfer, model.transfer_classifier)
        self._transfer_losses = losses_of_transfer(transfer, classifier, cri, label_smoothing=self.label_smoothing)
        weights = {"base": base, "transport": transport, "contrastive": contrastive, "graph": graph}
        weights = {name: check_at_least_zero(name, weight) for name, weight in weights.items()}
        if not any(weights.values()):
            raise ValueError("one weight at least must be above 0, got base, transport, contrastive and graph of 0")
        sparsity = check_at_least_zero("fusion_sparsity", fusion_sparsity)
        self.weights = weights | {"ce": weights["base"], "triplet": weights["base"], "fusion_sparsity": sparsity}
        self.triplet = CrossModalityTripletLoss(
            margin=margin, normalize=check_flag("normalize_triplet", normalize_triplet)
        )
        self.transport = GraphOTLoss(phi=phi, loss=loss, pairs=pairs, average=average)
        self.contrastive = PartContrastiveLoss(
            epsilon=epsilon, normalize=check_flag("normalize_nodes", normalize_nodes), average=average
        )

    def extra_repr(self) -> str:
        """Show the weights in ``repr``."""
        return f"weights={self.weights}"

    def forward(self, output: G2DAOutput, labels: Tensor, modality: Tensor) -> dict[str, Tensor]:
        """Compute the named losses, already weighted, and their sum ``"total"``; labels (B,), modality (B,)."""
        check_tensor("labels", labels, "B", kind="integer", B=output.features.shape[0])
        losses: dict[str, Tensor] = {}
        if self.weights["base"]:
            losses["ce"] = cross_entropy(output.logits, labels, self.label_smoothing)
            losses["triplet"] = self.triplet(output.pooled, labels, modality)
        if self.weights["transport"]:
            losses["transport"] = self.transport(output.nodes, labels, modality, mask=output.mask)
        if self.weights["contrastive"]:
            losses["contrastive"] = self.contrastive(output.nodes, labels, modality, mask=output.mask)
        if self.weights["graph"] and output.graph_logits is not None:
            losses["graph"] = cross_entropy(output.graph_logits, labels, self.label_smoothing)
        if self.weights["fusion_sparsity"] and output.fusion_scales is not None:
            losses["fusion_sparsity"] = output.fusion_scales.abs().sum()
        losses |= self._transfer_losses(output, labels, modality)
        if not losses:
            raise ValueError("no loss is left: only graph has a weight, and the model is without graph")
        return add_total(losses, self.weights)
