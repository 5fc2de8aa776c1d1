"""Message fusion attention: graph attention whose heads lend each other channels (G2DA, Wan et al., 2021), Eq. 8-11."""

import math

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from torch import Tensor, nn

from vireid._checks import check_count, check_flag, check_module, check_number, check_positive, check_tensor
from vireid._ops import at_least_float32
from vireid.nn.necks import BNNeck
from vireid.nn.skeleton import PERSON_13


class MessageFusionAttention(nn.Module):
    """Attention among the nodes of a skeleton graph, and fusion of its heads (G2DA §III-C, Eq. 8-11).

        α^l_ij = softmax over j ∈ nb(i) of LeakyReLU(a_l · [W^l v_i ‖ W^l v_j])        Eq. 8
        v_i^l = σ(Σ_j α^l_ij W^l v_j)                                                 Eq. 9
        y_ilc = γ_ilc (v_ilc - μ_ilc) / √(var_ilc + eps) + β_ilc                      Eq. 10
        v̄_ilc = y_ilc where |γ_ilc| > θ, else the mean of y_il'c over the other heads Eq. 11

    The score is computed in two halves, a_l · [x ‖ y] = left_l · x + right_l · y, without a tensor of all pairs of
    features. Each node, head and channel is batch-normalized on its own, over the images of the batch, and its scale γ
    decides whether the channel is kept. The comparison has no gradient: a channel that is replaced learns its γ and β
    only through the heads that borrow it. A single head has none to borrow from and keeps all channels (our choice). A
    training batch of 0 or 1 graphs is normalized by the running statistics, as in `BNNeck`.

    Args:
        dim: feature size d, of the input and, heads side by side, of the output.
        heads: L.
        adjacency: (K + 1, K + 1) bool, row i marks the nodes that node i attends to; see `skeleton_adjacency`. Default:
            the paper's 13 key points, which makes 14 nodes.
        threshold: θ, the paper's 0.02. At 0 only a channel with γ = 0 is replaced, below 0 none: Table III without
            "MF".
        activation: σ, "a nonlinear activation function" in the paper. Default: ELU (our choice), as in the graph
            attention network (Velickovic et al., ICLR 2018) that the layer extends.
        negative_slope: of the LeakyReLU; 0.2 (our choice) for the same reason.
        head_dim: size h of a head. Default: d / L (our choice), so that the heads side by side are of size d. The
            paper's a_l ∈ R^{2d} suggests d. Heads that are together not of size d are brought back to it by a linear
            layer (our choice; the paper says "a simple concatenation" and v̄ ∈ R^d).
        magnitude: True: a channel is kept where |γ| is above θ (our choice, as in the channel exchanging networks that
            the idea comes from, so that θ = 0 removes the fusion). False: where γ is, as printed; then only
            ``-math.inf`` replaces nothing for certain.

    Attributes:
        project: the linear layer of W^1 to W^L, without bias. It starts without mixing the backbone's channels (our
            choice): as the identity, which gives a head its share of the channels, or in general as channel (r mod d)
            for row r of L·h.
        score: (2, L, h) parameter, the left and the right halves of a_l.
        norm: the batch normalization, (K + 1)·L·h channels: node by node, in it head by head. γ starts at 1, β at 0.
        out: None where L·h = d, else the linear layer L·h -> d, without bias. It starts as the mean of the rows that a
            channel was given to.
        adjacency: the buffer; not in the state dict.

    Raises:
        ValueError: if ``dim`` is not a multiple of ``heads`` and there is no ``head_dim``, the adjacency is not square
            or a number is out of range.
        TypeError: if an argument is of another type.
    """

    adjacency: Tensor

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 4,
        adjacency: Tensor | None = None,
        threshold: float = 0.02,
        activation: nn.Module | None = None,
        negative_slope: float = 0.2,
        head_dim: int | None = None,
        magnitude: bool = True,
    ) -> None:
        super().__init__()
        dim, heads = check_count("dim", dim), check_count("heads", heads)
        if head_dim is None and dim % heads:
            raise ValueError(f"dim must be a multiple of heads = {heads}, got {dim}")
        self.head_dim = dim // heads if head_dim is None else check_count("head_dim", head_dim)
        if math.isnan(threshold := check_number("threshold", threshold)):
            raise ValueError(f"threshold must be a number or an infinity, got {threshold}")
        adjacency = PERSON_13.adjacency() if adjacency is None else adjacency
        check_tensor("adjacency", adjacency, "K+1 K+1", kind="bool")
        if adjacency.shape[0] != adjacency.shape[1] or not adjacency.shape[0]:
            raise ValueError(f"adjacency must be square, one row per node, got {tuple(adjacency.shape)}")
        self.dim, self.heads, self.nodes, self.threshold = dim, heads, adjacency.shape[0], threshold
        self.negative_slope = check_positive("negative_slope", negative_slope)
        self.magnitude = check_flag("magnitude", magnitude)
        self.register_buffer("adjacency", adjacency.clone(), persistent=False)
        width = heads * self.head_dim
        self.project = nn.Linear(dim, width, bias=False)
        self.score = nn.Parameter(torch.empty(2, heads, self.head_dim))
        self.activation = nn.ELU() if activation is None else activation
        check_module("activation", self.activation)
        self.norm = BNNeck(self.nodes * width)
        self.norm.bias.requires_grad_(True)
        self.out = None if width == dim else nn.Linear(width, dim, bias=False)
        nn.init.normal_(self.score, std=self.head_dim**-0.5)
        row = torch.arange(width)
        channel = row % dim
        with torch.no_grad():
            self.project.weight.zero_()[row, channel] = 1
            if self.out is not None:
                self.out.weight.zero_()[channel, row] = 1 / channel.bincount()[channel]

    def extra_repr(self) -> str:
        """Show the settings in ``repr``."""
        fusion = f"threshold={self.threshold}, head_dim={self.head_dim}, magnitude={self.magnitude}"
        return f"{self.dim}, heads={self.heads}, nodes={self.nodes}, {fusion}"

    def forward(self, nodes: Tensor, mask: Tensor | None = None) -> Tensor:
        """Let the nodes of each graph attend to their neighbors, then fuse the heads.

        Args:
            nodes: (B, K + 1, d) node features of the graphs, in the order of the adjacency.
            mask: (B, K + 1) bool, False for an absent node, whose feature is ignored and which no node attends to; it
                attends to its neighbors itself. Default: all are present, as in the paper.

        Returns:
            (B, K + 1, d) v̄. For a node without a present neighbor, itself included, the sum in Eq. 9 is 0.

        Raises:
            ValueError: if a shape is wrong.
            TypeError: if ``nodes`` is not floating point or ``mask`` not bool.
        """
        values = self._values(nodes, mask)
        attention = self._attention(values, mask).to(values.dtype)
        # contiguous: compiled gradients of ELU and others are wrong for other strides; what follows copies anyway
        messages = self.activation(einsum(attention, values, "b l i j, b j l c -> b i l c").contiguous())
        normalized = self.norm(rearrange(messages, "b i l c -> b (i l c)")).reshape(messages.shape)
        fused = rearrange(self._fuse(normalized), "b i l c -> b i (l c)")
        return fused if self.out is None else self.out(fused)

    def attention(self, nodes: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute α (B, L, K + 1, K + 1) of Eq. 8, as in `forward`, in at least float32.

        Rows sum to 1, or are 0 for a node without neighbors.
        """
        return self._attention(self._values(nodes, mask), mask)

    def scales(self) -> Tensor:
        """Return γ (K + 1, L, h), with gradient."""
        return self.norm.weight.view(self.nodes, self.heads, self.head_dim)

    def kept(self) -> Tensor:
        """Return the mask (K + 1, L, h) of the channels that keep their own value, by their γ and θ."""
        gamma = self.scales().detach()
        return (gamma.abs() if self.magnitude else gamma) > self.threshold

    def _values(self, nodes: Tensor, mask: Tensor | None) -> Tensor:
        """Compute W^l v_i (B, K + 1, L, h)."""
        check_tensor("nodes", nodes, "B n d", n=self.nodes, d=self.dim)
        if mask is not None:
            check_tensor("mask", mask, "B n", kind="bool", like=nodes, B=nodes.shape[0], n=self.nodes)
            nodes = torch.where(mask[:, :, None], nodes, 0)
        return rearrange(self.project(nodes), "b i (l c) -> b i l c", l=self.heads)

    def _attention(self, values: Tensor, mask: Tensor | None) -> Tensor:
        neighbors = self.adjacency
        if mask is not None:
            neighbors = neighbors & mask[:, None, None, :]
        halves = einsum(values, self.score.to(values.dtype), "b i l c, s l c -> s b l i")
        left, right = at_least_float32(halves)
        scores = F.leaky_relu(left[..., :, None] + right[..., None, :], self.negative_slope)
        lowest = torch.finfo(scores.dtype).min
        return scores.masked_fill(~neighbors, lowest).softmax(-1) * neighbors  # no neighbor: zeros

    def _fuse(self, own: Tensor) -> Tensor:
        """Apply Eq. 11 to the normalized values (B, K + 1, L, d / L)."""
        if self.heads == 1:
            return own
        values = at_least_float32(own)
        others = (values.sum(2, keepdim=True) - values) / (self.heads - 1)
        return torch.where(self.kept(), own, others.to(own.dtype))
