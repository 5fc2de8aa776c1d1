"""CIFT (Li et al., ECCV 2022) as plain loops over images, groups and neighbors, written only from the equations.

Slow on purpose. Everything takes and gives float64 tensors and is differentiable, so that gradients compare too.
Nothing here imports vireid.
"""

import torch
from torch import Tensor, nn

# -- CIFT: BNNeck and feature transfer (Eq. 2-4) -------------------------------------------------------------------


def batch_norm(x: Tensor, weight: Tensor, running_mean: Tensor, running_var: Tensor, *, training: bool) -> Tensor:
    """Batch normalization without a shift; 0 or 1 rows have no variance and use the running statistics."""
    if training and len(x) > 1:
        mean = sum(x) / len(x)
        var = sum((row - mean) ** 2 for row in x) / len(x)
    else:
        mean, var = running_mean, running_var
    return torch.stack([(row - mean) / (var + 1e-5) ** 0.5 * weight for row in x]) if len(x) else x


def randomized(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module in float64, with a scale and running statistics as training leaves them."""
    g = torch.Generator().manual_seed(seed)
    module = module.double()
    for name, t in module.state_dict().items():
        if name.endswith("running_mean"):
            t.copy_(0.3 * torch.randn(t.shape, generator=g))
        elif name.endswith(("running_var", "weight")) and t.ndim == 1:
            t.copy_(0.5 + torch.rand(t.shape, generator=g))
    return module


def values_of(module: nn.Module, x: Tensor) -> Tensor:
    """v(x) of a module with the default BNNeck, by the reference, in the module's mode."""
    state = {name.rsplit(".", 1)[-1]: t.detach().cpu().clone() for name, t in module.value.state_dict().items()}
    return batch_norm(x.cpu(), state["weight"], state["running_mean"], state["running_var"], training=module.training)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    length = (a @ a).sqrt() * (b @ b).sqrt()
    return a @ b / length if length > 0 else a @ b


def affinity(keys: list[Tensor], i: int, members: list[int], k: int, tau: float) -> dict[int, Tensor]:
    """Row i of A = D^-1 T(S, k) over the images ``members``: {neighbor: weight}. Image i is one of its neighbors."""
    scores = {j: torch.ones((), dtype=keys[i].dtype) if j == i else cosine(keys[i], keys[j]) for j in members}
    others = sorted((j for j in members if j != i), key=lambda j: (-float(scores[j].detach()), j))
    kept = [i, *others[: k - 1]]
    similarity = {j: torch.exp(scores[j] / tau) for j in kept}
    total = sum(similarity.values())
    return {j: s / total for j, s in similarity.items()}


def aggregate(weights: dict[int, Tensor], values: list[Tensor]) -> Tensor:
    return sum(w * values[j] for j, w in weights.items())


def h2ft(
    keys: Tensor, values: Tensor, modality: Tensor, *, k: int, tau_hom: float, tau_het: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Every image in turn is the query of its group, the images of the other modality are its gallery.

    Returns f_q (B, d), F_G (B, d), A_het (B, B), A_hom (B, B).
    """
    keys, values, kind = list(keys), list(values), modality.tolist()
    size = len(kind)
    f_q, f_g = [None] * size, [[] for _ in range(size)]
    a_het, a_hom = torch.zeros(size, size).double(), torch.zeros(size, size).double()
    for q in range(size):
        gallery = [j for j in range(size) if kind[j] != kind[q]]
        row = affinity(keys, q, [q, *gallery], k, tau_het)
        f_q[q] = aggregate(row, values)
        for j, w in row.items():
            a_het[q, j] = w.detach()
        for g in gallery:
            f_g[g].append(aggregate(affinity(keys, g, gallery, k, tau_hom), values))
    for g in range(size):
        own = [j for j in range(size) if kind[j] == kind[g]]
        row = affinity(keys, g, own, k, tau_hom)
        for j, w in row.items():
            a_hom[g, j] = w.detach()
        if not f_g[g]:  # a batch of one modality has no group with this image in its gallery
            f_g[g].append(aggregate(row, values))
        for other in f_g[g]:  # all groups that share a gallery agree on it
            torch.testing.assert_close(other, f_g[g][0], rtol=0, atol=1e-12)
    return torch.stack(f_q), torch.stack([rows[0] for rows in f_g]), a_het, a_hom


def h2ft_transfer(
    query: Tensor, gallery: Tensor, *, k: int, tau_hom: float, tau_het: float
) -> tuple[Tensor, Tensor, list[set[int]]]:
    """Each query alone with the gallery. Takes v(query), v(gallery).

    Returns f_q (Nq, d), F_G (Ng, d) and the gallery images among each query's neighbors.
    """
    f_q, neighbors = [], []
    for q in query:
        rows = [q, *gallery]
        weights = affinity(rows, 0, list(range(len(rows))), k, tau_het)
        f_q.append(aggregate(weights, rows))
        neighbors.append({j - 1 for j in weights if j > 0})
    rows = list(gallery)
    everyone = list(range(len(rows)))
    f_g = [aggregate(affinity(rows, g, everyone, k, tau_hom), rows) for g in everyone]
    return torch.stack(f_q), torch.stack(f_g), neighbors


def gft(keys: Tensor, values: Tensor, *, k: int, tau: float) -> tuple[Tensor, Tensor]:
    """One affinity over all rows. Returns A v(x) (B, d) and A (B, B)."""
    keys, values = list(keys), list(values)
    everyone = list(range(len(keys)))
    out, matrix = [], torch.zeros(len(keys), len(keys)).double()
    for i in everyone:
        row = affinity(keys, i, everyone, k, tau)
        out.append(aggregate(row, values))
        for j, w in row.items():
            matrix[i, j] = w.detach()
    return torch.stack(out), matrix


def gft_groups(
    keys: Tensor, values: Tensor, modality: Tensor, *, k: int, tau: float
) -> tuple[Tensor, list[tuple[int, int, Tensor]]]:
    """GFT on the 1:N groups: one affinity over the query and all images of the other modality, for each image as query.

    Returns the query's row of each group (B, d) and the gallery rows as (query, gallery image, feature).
    """
    keys, values, kind = list(keys), list(values), modality.tolist()
    f_q, f_g = [], []
    for q in range(len(kind)):
        members = [q, *(j for j in range(len(kind)) if kind[j] != kind[q])]
        f_q.append(aggregate(affinity(keys, q, members, k, tau), values))
        f_g.extend((q, g, aggregate(affinity(keys, g, members, k, tau), values)) for g in members[1:])
    return torch.stack(f_q), f_g


def gft_transfer(
    query: Tensor, gallery: Tensor, *, k: int, tau: float, summed: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor, int, int]:
    """GFT over {q} and the gallery for each query alone. Takes v(query), v(gallery), and what is summed if not these.

    Returns f_q (Nq, d), F_G (Nq, Ng, d), and how many gallery rows have q among their neighbors and how many have not.
    """
    f_q, f_g, taken, free = [], [], 0, 0
    own, theirs = (query, gallery) if summed is None else summed
    for q, x in zip(query, own, strict=True):
        rows, values = [q, *gallery], [x, *theirs]
        members = list(range(len(rows)))
        weights = [affinity(rows, i, members, k, tau) for i in members]
        taken += sum(0 in w for w in weights[1:])
        free += sum(0 not in w for w in weights[1:])
        features = [aggregate(w, values) for w in weights]
        f_q.append(features[0])
        f_g.append(torch.stack(features[1:]))
    return torch.stack(f_q), torch.stack(f_g), taken, free


def cosine_distance(f_q: Tensor, f_g: Tensor) -> Tensor:
    """1 - cos of each query with each gallery row; ``f_g`` is (Ng, d), or (Nq, Ng, d) with a gallery for each query."""
    out = torch.empty(len(f_q), f_g.shape[-2]).double()
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            out[i, j] = 1 - cosine(f_q[i], f_g[j] if f_g.ndim == 2 else f_g[i, j])
    return out


# -- CIFT: counterfactual relation intervention (Eq. 5-6) ----------------------------------------------------------


def cross_entropy(logits: Tensor, label: int) -> Tensor:
    """Of one row."""
    return torch.log(sum(torch.exp(logit) for logit in logits)) - logits[label]


def total_indirect_effect(factual: list[Tensor], draws: list[list[Tensor]], labels: list[int]) -> Tensor:
    """Mean over the rows of the cross-entropy of Y(X, A_X) - mean over draws of Y(X, A_X*)."""
    losses = []
    for i, logits in enumerate(factual):
        counterfactual = sum(draw[i] for draw in draws) / len(draws)
        losses.append(cross_entropy(logits - counterfactual, labels[i]))
    return sum(losses) / len(losses)


# -- CIFT: heterogeneous center contrastive loss (Eq. 13, supplement Eq. 6) ----------------------------------------


def hcc(
    x: Tensor,
    labels: Tensor,
    modality: Tensor | None = None,
    *,
    margin: float,
    distance: str,
    centers: str,
    negatives: str,
    normalize: bool,
    kl_direction: str = "to_center",
    kl_center: str = "probabilities",
) -> Tensor:
    """mean_i { D(I_i, C_pos) + agg_k max(margin - D(I_i, C_k), 0) }, k over the other identities' centers."""
    identity = labels.tolist()
    kind = modality.tolist() if modality is not None else [0] * len(identity)
    rows = []

    def softmax(row: Tensor) -> Tensor:
        exponentials = torch.exp(row - row.max().detach())
        return exponentials / exponentials.sum()

    for row in x:
        if distance == "kl":
            rows.append(softmax(row))
        elif normalize and row @ row > 0:
            rows.append(row / (row @ row).sqrt())
        else:
            rows.append(row)

    def center(of: int, i: int) -> Tensor | None:
        """The center of identity ``of`` that image i is compared with, None where it has none."""
        members = [j for j in range(len(rows)) if identity[j] == of and (centers == "shared" or kind[j] != kind[i])]
        if not members:
            return None
        if distance == "kl" and kl_center == "logits":
            return softmax(sum(x[j] for j in members) / len(members))
        return sum(rows[j] for j in members) / len(members)

    def dissimilarity(a: Tensor, b: Tensor) -> Tensor:
        if distance == "kl":
            a, b = (a, b) if kl_direction == "to_center" else (b, a)
            return sum(a[c] * (torch.log(a[c]) - torch.log(b[c])) for c in range(len(a)))
        square = (a - b) @ (a - b)
        return square.sqrt() if square > 0 else square

    terms = []
    for i in range(len(rows)):
        positive = center(identity[i], i)
        if positive is None:
            continue
        others = [center(of, i) for of in sorted(set(identity)) if of != identity[i]]
        pushes = [(margin - dissimilarity(rows[i], c)).clamp_min(0) for c in others if c is not None]
        push = sum(pushes) if pushes else torch.zeros(()).double()
        if negatives == "mean" and pushes:
            push = push / len(pushes)
        terms.append(dissimilarity(rows[i], positive) + push)
    return sum(terms) / len(terms) if terms else torch.zeros(()).double()
