"""AGW (Ye et al., TPAMI 2021), HC (Zhu et al., 2020) and HCT (Liu et al., 2020), the backbones of CIFT's Table 2."""

from typing import Literal, NamedTuple

from einops import rearrange
from torch import Tensor, nn

from vireid._checks import (
    check_at_least_zero,
    check_count,
    check_flag,
    check_fraction,
    check_module,
    check_option,
    check_tensor,
)
from vireid._ops import cross_entropy
from vireid.losses import CRILoss, HeteroCenterLoss, HeteroCenterTripletLoss, WeightedRegularizedTripletLoss
from vireid.models._common import Embedder, add_total, feature_size, transfer_classifier, transferred
from vireid.models.baseline import MetricFeatures, metric_features_of
from vireid.models.cift import losses_of_transfer
from vireid.nn import BNNeck, GeM, H2FTOutput
from vireid.nn.transfer import FeatureTransfer


class AGWOutput(NamedTuple):
    """Output of `AGW`, in training and in evaluation. Features have their stripes side by side.

    Attributes:
        features: (B, d) behind the neck; they rank at test time.
        pooled: (B, d) before the neck: pooled and, with ``part_dim``, reduced.
        logits: (B, s, C), one row per stripe.
        transfer: with a transfer on top: f_q, F_G and the affinities of this batch; else None.
        query_logits: (B, C) Y_g of f_q, or None.
        gallery_logits: (R, C) Y_g of F_G, or None.
        feature_map: (B, c, h, w) of the backbone, for losses on parts; None if left out.
    """

    features: Tensor
    pooled: Tensor
    logits: Tensor
    transfer: H2FTOutput | None = None
    query_logits: Tensor | None = None
    gallery_logits: Tensor | None = None
    feature_map: Tensor | None = None


class AGW(Embedder):
    """Backbone, pooling of the map or of its stripes, BNNeck, and a classifier per stripe.

        AGW    AGW(backbone, C), of a two-stream backbone with non-local blocks (`vireid.nn.insert_non_local`)
        HC     AGW(backbone, C, pooling="avg", stripes=6, part_dim=512)
        HCT    AGW(backbone, C, stripes=6, part_dim=256, relu=True, trainable_p=False)

    The published code of HC and HCT has a shift in the batch normalizations, a bias in the classifiers and, in HC, a
    LeakyReLU before them; here the neck and the classifiers are those of all models (our choice).

    Args:
        backbone: as in `Baseline`.
        num_classes: number C of training identities.
        pooling: ``"gem"``, `vireid.nn.GeM`, or ``"avg"``.
        p: of GeM.
        trainable_p: of GeM: whether p is learned.
        stripes: number s of horizontal stripes.
        part_dim: size to which a linear layer of its own reduces each stripe. Default: not reduced.
        relu: whether a ReLU follows the neck.
        channels: c. Default: the backbone's ``out_channels``.
        grid: (rows, columns) that the map is pooled to before its cells are stacked. Default: the backbone's ``grid``
            where it has one, else (1, 1). Its rows become a multiple of the stripes: the next lower one, at least s.
        transfer: `vireid.nn.H2FT`, `GFT` or `SharedFeatureTransfer` on the features, of size d, with a classifier W_g
            of its own; None leaves it out.

    Attributes:
        dim: d, the size of the features.

    Raises:
        ValueError: if the channels are neither given nor known, an option is out of its range, the transfer is of
            another size, or, when called, if the backbone returns other channels.
        TypeError: if the backbone is not a module, or an argument is of another type.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        pooling: Literal["gem", "avg"] = "gem",
        p: float = 3.0,
        trainable_p: bool = True,
        stripes: int = 1,
        part_dim: int | None = None,
        relu: bool = False,
        channels: int | None = None,
        grid: tuple[int, int] | None = None,
        transfer: FeatureTransfer | None = None,
    ) -> None:
        super().__init__(backbone, num_classes, grid)
        check_option("pooling", pooling, ("gem", "avg"))
        self.stripes, self.relu = check_count("stripes", stripes), check_flag("relu", relu)
        self.grid = (max(1, self.grid[0] // self.stripes) * self.stripes, self.grid[1])
        if channels is None:
            channels = feature_size(backbone, (1, 1), name="channels")
        self.channels = check_count("channels", channels)
        gem = GeM(p, check_flag("trainable_p", trainable_p), grid=self.grid)
        self.pooling = gem if pooling == "gem" else None
        self.dim = self.channels * self.cells
        self.reduction: nn.Conv1d | None = None
        if part_dim is not None:  # a linear layer per stripe
            reduced = self.stripes * check_count("part_dim", part_dim, maximum=2**31 - 1)
            self.reduction = nn.Conv1d(self.dim, reduced, 1, groups=self.stripes)
            self.dim = reduced
        self.neck = BNNeck(self.dim)
        self.classifier = nn.Conv1d(self.dim, self.stripes * self.num_classes, 1, groups=self.stripes, bias=False)
        nn.init.normal_(self.classifier.weight, std=0.001)
        self.transfer, self.graph_classifier = transfer, transfer_classifier(transfer, self.dim, self.num_classes)

    def forward(self, images: Tensor, modality: Tensor) -> AGWOutput:
        """Embed ``images`` (B, 3, H, W) of ``modality`` (B,)."""
        maps = self.feature_map(images, modality, self.channels)
        cells = self.stack_cells(maps) if self.pooling is None else self.pooling(maps)
        pooled = rearrange(
            cells, "b (c s rows columns) -> b (s c rows columns)", c=self.channels, s=self.stripes, columns=self.grid[1]
        )
        if self.reduction is not None:
            pooled = self.reduction(pooled[:, :, None])[:, :, 0]
        features = self.neck(pooled)
        features = features.relu() if self.relu else features
        logits = self.classifier(features[:, :, None]).unflatten(1, (self.stripes, self.num_classes))[..., 0]
        graph = transferred(self.transfer, self.graph_classifier, features, modality)
        return AGWOutput(features, pooled, logits, *graph, maps)


class AGWCriterion(nn.Module):
    """Cross-entropy of each stripe and losses of distances.

        L = Σ_s CE_s + w_t L_wrt + w_c Σ_s L_hc,s + w_h (Σ_s L_hct,s + L_hct)   and the losses of a transfer

        AGW    triplet=1: the weighted regularized triplet loss of the features
        HC     hetero_center=0.5, metric_features="neck": the hetero-center loss of each stripe
        HCT    hetero_center_triplet=1, metric_features="neck": that of each stripe (`stripe_weight` times) and of all

    A weight of 0 leaves its loss out. A model with a transfer also has `graph_losses`, or `shared_losses` of a
    `SharedFeatureTransfer`.

    Args:
        model: the `AGW` whose transfer, if it has one, L_tie shares. It is not registered here: its parameters belong
            to the model only. So copy both together, or make a new criterion for a copied model.
        triplet: w_t.
        hetero_center: w_c.
        hetero_center_triplet: w_h.
        stripe_weight: weight of the stripes' hetero-center triplet losses beside that of the whole; in the published
            code 1 for SYSU-MM01 and 2 for RegDB. With one stripe there is the whole only.
        margin: of the hetero-center triplet loss.
        label_smoothing: of the cross-entropies, in [0, 1].
        metric_features: of the losses of distances: ``"pooled"``, the features before the neck, or ``"neck"``, those
            behind it.
        cri: CIFT's L_tie, for a model with ``transfer``; None leaves it out.

    Raises:
        ValueError: if a number is out of its range, or there is ``cri`` and no transfer.
        TypeError: if a number is not one.
    """

    def __init__(
        self,
        model: AGW,
        *,
        triplet: float = 1.0,
        hetero_center: float = 0.0,
        hetero_center_triplet: float = 0.0,
        stripe_weight: float = 1.0,
        margin: float = 0.3,
        label_smoothing: float = 0.0,
        metric_features: MetricFeatures = "pooled",
        cri: CRILoss | None = None,
    ) -> None:
        super().__init__()
        check_module("model", model, AGW)
        check_option("metric_features", metric_features, ("pooled", "neck"))
        self.weights = {
            "triplet": check_at_least_zero("triplet", triplet),
            "hetero_center": check_at_least_zero("hetero_center", hetero_center),
            "hetero_center_triplet": check_at_least_zero("hetero_center_triplet", hetero_center_triplet),
        }
        self.stripe_weight = check_at_least_zero("stripe_weight", stripe_weight)
        self.label_smoothing = check_fraction("label_smoothing", label_smoothing)
        self.metric_features: MetricFeatures = metric_features
        self.triplet, self.hetero_center = WeightedRegularizedTripletLoss(), HeteroCenterLoss()
        self.hetero_center_triplet = HeteroCenterTripletLoss(margin=margin)
        self.cri = cri
        self._transfer_losses = losses_of_transfer(
            model.transfer, model.graph_classifier, cri, label_smoothing=self.label_smoothing
        )

    def extra_repr(self) -> str:
        """Show the settings in ``repr``."""
        return f"weights={self.weights}, metric_features={self.metric_features!r}"

    def forward(self, output: AGWOutput, labels: Tensor, modality: Tensor) -> dict[str, Tensor]:
        """Compute the named losses, already weighted, and their sum ``"total"``; labels (B,), modality (B,)."""
        size = output.features.shape[0]
        check_tensor("labels", labels, "B", kind="integer", B=size)
        stripes = output.logits.shape[1]
        rows = metric_features_of(output, self.metric_features)
        parts = rearrange(rows, "b (s d) -> s b d", s=stripes)
        every = output.logits.flatten(0, 1)  # the mean over all rows, times the stripes, is the sum of their means
        losses = {"ce": stripes * cross_entropy(every, labels.repeat_interleave(stripes), self.label_smoothing)}
        if self.weights["triplet"]:
            losses["triplet"] = self.triplet(rows, labels, modality)
        if self.weights["hetero_center"]:
            losses["hetero_center"] = sum((self.hetero_center(p, labels, modality) for p in parts), rows.new_zeros(()))
        if self.weights["hetero_center_triplet"]:
            whole = self.hetero_center_triplet(rows, labels, modality)
            if stripes > 1:
                each = sum((self.hetero_center_triplet(p, labels, modality) for p in parts), whole.new_zeros(()))
                whole = whole + self.stripe_weight * each
            losses["hetero_center_triplet"] = whole
        return add_total(losses | self._transfer_losses(output, labels, modality), self.weights)
