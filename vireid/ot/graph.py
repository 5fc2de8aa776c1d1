"""Fused Gromov-Wasserstein distance between the graphs of a batch of pairs (G2DA, Eq. 4-7)."""

import warnings
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from vireid._checks import check_count, check_fraction, check_option, check_positive, check_tensor, values_are_free
from vireid._ops import scale_to_1
from vireid.ot._functions import NodeProducts
from vireid.ot.entropic import solve_entropic
from vireid.ot.exact import solve_exact
from vireid.ot.problem import Problems, structure_cost

_EPS = 1e-12  # a row not longer than this counts as a zero row


class GraphOT(NamedTuple):
    """Result of `graph_ot` for B pairs of graphs with n and m nodes.

    Attributes:
        cost: (B,) D_ot of each pair, at least 0 up to rounding, with a gradient to the features.
        plan: (B, n, m) T; without a gradient. Rows and columns of absent nodes are 0.
        marginal_error: (B,) Σ_i |Σ_j T_ij - u_i| or Σ_j |Σ_i T_ij - v_j|, the larger; without a gradient.
    """

    cost: Tensor
    plan: Tensor
    marginal_error: Tensor


def graph_ot(
    x: Tensor,
    y: Tensor,
    *,
    phi: float = 0.5,
    loss: Literal["abs", "square"] = "abs",
    weights_x: Tensor | None = None,
    weights_y: Tensor | None = None,
    mask_x: Tensor | None = None,
    mask_y: Tensor | None = None,
    solver: Literal["auto", "exact", "entropic"] = "auto",
    tolerance: float = 1e-5,
    iterations: int = 200,
    restarts: int = 0,
) -> GraphOT:
    """Compute the optimal transport between the nodes of each pair of graphs, by their features and their structure.

        c(a, b) = 1 - cos(a, b)
        D_w  = Σ_ij T_ij c(x_i, y_j)
        D_gw = Σ_ii'jj' T_ij T_i'j' L,   L = |c(x_i, x_i') - c(y_j, y_j')| or its square
        D_ot = min over T ∈ Π(u, v) of φ D_w + (1 - φ) D_gw

    The gradient is that of the cost at the plan found, held fixed (envelope theorem). A zero row has cosine 0 with
    every other node, and a node has distance 0 from itself. Rows should be 1e-12 to 1e18 long: shorter ones count as
    zero, and the square of a longer one may overflow. Only if the longest is out of that range are all scaled, and only
    on the CPU. Pairs do not influence each other.

    For φ < 1 the problem is not convex: the result is a plan that the solver cannot improve, not always the best. How
    far above the best it may end is on the results page of G2DA.

    ``"exact"`` is a conditional gradient whose linear steps are solved exactly, on the CPU; its marginals are exact to
    rounding, and for φ = 1 its plan is optimal. Pairs with equally many nodes on both sides, all of one weight, are
    solved together by assignments (SciPy), followed by exchanges of two nodes (our choice), from three starts: the plan
    that is best for the features only (for φ = 0, the nodes backwards), the nodes in the given order, and the first
    step from u vᵀ. Every other pair is solved on its own by the network simplex and the conditional gradient of POT,
    from u vᵀ, the features' plan and four plans halfway between u vᵀ and that of random costs (our choice).

    ``"entropic"`` takes proximal points from u vᵀ and stays on the device; its plan is rounded to exact marginals, so
    that its cost is never below the optimum. Where a plan can be a permutation, exchanges of two nodes follow (our
    choice), from permutations near the proximal points' plan, near the features' and near the first step from u vᵀ,
    from the nodes in their order and from a random one; otherwise a second start of the proximal points is near the
    features' plan.

    Under torch.compile, either solver is one opaque operator, between two compiled parts of one graph; weights are not
    checked there.

    Args:
        x: (B, n, d) node features.
        y: (B, m, d) node features, y_b to be matched with x_b.
        phi: φ in [0, 1]: 0 compares structure only (Gromov-Wasserstein), 1 features only (Wasserstein).
        loss: ``"abs"`` as in the paper, or ``"square"``.
        weights_x: (n,) or (B, n) finite, at least 0, scaled to sum 1 over the present nodes. Default: uniform.
        weights_y: (m,) or (B, m), likewise.
        mask_x: (B, n) bool, True where a node is present: an absent one gets no mass, and its features are ignored.
            A pair without a present node on one side has cost 0.
        mask_y: (B, m) bool, likewise.
        solver: ``"exact"``, ``"entropic"``, or ``"auto"`` (our choice): exact if the features are on the CPU, entropic
            on any other device, where it avoids copies to the CPU and solves all pairs at once.
        tolerance: marginal error above which a warning is given.
        iterations: steps at most, of each kind, for either solver.
        restarts: further starts, random ones of a fixed seed (our choice). They help if φ is small or the nodes of the
            two graphs have little in common.

    Returns:
        `GraphOT`, in at least float32. A pair with features that are not finite has cost NaN.

    Raises:
        ValueError: if a shape, a range or an option is wrong, or a present node's weight is negative or not finite.
        TypeError: if features or weights are not floating point, or a mask is not bool.

    Warns:
        UserWarning: if a plan misses its marginals by more than ``tolerance``, or if ``iterations`` are used up before
            a plan has settled, which could then be improved.

    Example:
        >>> x = torch.eye(3)[None]
        >>> graph_ot(x, x[:, [2, 0, 1]]).plan.argmax(2).tolist()
        [[1, 2, 0]]
    """
    phi, iterations, restarts = check_options(phi, loss, solver, iterations, restarts)
    tolerance = check_positive("tolerance", tolerance)
    _check_graphs(x, y, {"x": weights_x, "y": weights_y}, {"x": mask_x, "y": mask_y})
    with torch.autocast(x.device.type, enabled=False):
        dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
        cost, cx, cy = _cosine_distances(_present(x.to(dtype), mask_x), _present(y.to(dtype), mask_y))
        with torch.no_grad():
            u, v = _marginals(weights_x, mask_x, cx), _marginals(weights_y, mask_y, cy)
            solvable = ((u.sum(1) > 0) & (v.sum(1) > 0)).to(u)[:, None]
            u, v = u * solvable, v * solvable
            finite = [c.nan_to_num(0, 0, 0) for c in (cost, cx, cy)]
            problems = Problems.build(finite[0], finite[1], finite[2], u, v, phi, loss)
            exact = solver == "exact" or (solver == "auto" and x.device.type == "cpu")
            solve = _opaque if torch.compiler.is_compiling() else _solve
            plan, error = solve(list(problems[:5]), phi, loss, exact, tolerance, iterations, restarts)
        d_ot = phi * (plan * cost).sum((1, 2))
        if phi < 1:
            d_ot = d_ot + (1 - phi) * structure_cost(cx, cy, plan, problems)
        return GraphOT(d_ot, plan, error)


def _solve(
    tensors: list[Tensor], phi: float, loss: str, exact: bool, tolerance: float, iterations: int, restarts: int
) -> tuple[Tensor, Tensor]:
    """Return the plans (B, n, m) of `Problems` of these fields and their errors (B,); warn as `graph_ot` says."""
    linear, cx, cy, u, v = tensors
    problems = Problems(linear, cx, cy, u, v, phi, loss)
    plan, _, unsettled = (solve_exact if exact else solve_entropic)(problems, iterations, restarts)
    error = torch.maximum((plan.sum(2) - u).abs().sum(1), (plan.sum(1) - v).abs().sum(1))
    worst, count = torch.stack([error.max() if len(error) else error.sum(), unsettled.sum().to(error)]).tolist()
    if not worst <= tolerance:
        message = f"a transport plan misses its marginals by {worst:.1e}, more than the tolerance {tolerance:.1e}"
        warnings.warn(message, UserWarning, stacklevel=3)
    if count:
        message = f"{count:.0f} of {len(error)} transport plans had not settled after iterations={iterations}"
        warnings.warn(message, UserWarning, stacklevel=3)
    return plan, error


# The same for a compiler, which cannot follow loops whose length depends on the data.
_opaque = torch.library.custom_op("vireid::transport_plans", _solve, mutates_args=())
_opaque.register_fake(lambda tensors, *_: (torch.empty_like(tensors[0]), tensors[0].new_empty(len(tensors[0]))))


def _products(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return x yᵀ, x xᵀ and y yᵀ of each pair of graphs."""
    compiling = torch.compiler.is_compiling()  # which cannot follow the buffer
    products: tuple[Tensor, Tensor, Tensor] = (x @ y.mT, x @ x.mT, y @ y.mT) if compiling else NodeProducts.apply(x, y)
    return products


def _cosine_distances(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return 1 - cos between x and y (B, n, m), within x (B, n, n) and within y (B, m, m)."""
    xy, xx, yy = _products(x, y)
    squares = [products.diagonal(dim1=1, dim2=2) for products in (xx, yy)]
    if values_are_free(x) and len(x) and not all(1e-24 < s.detach().max() < 1e37 for s in squares):
        xy, xx, yy = _products(scale_to_1(x), scale_to_1(y))
        squares = [products.diagonal(dim1=1, dim2=2) for products in (xx, yy)]
    # a zero row is divided by 1, so that its gradient is no larger than the incoming one
    per_x, per_y = (torch.where(s <= _EPS**2, 1, s).rsqrt() for s in squares)
    cx, cy = 1 - xx * per_x[:, :, None] * per_x[:, None], 1 - yy * per_y[:, :, None] * per_y[:, None]
    return 1 - xy * per_x[:, :, None] * per_y[:, None], _distance(cx), _distance(cy)


def _distance(c: Tensor) -> Tensor:
    """Make ``c`` exactly symmetric and exactly 0 on its diagonal, despite the rounding of the matrix product."""
    return (c + c.mT) * (0.5 - 0.5 * torch.eye(c.shape[1], dtype=c.dtype, device=c.device))


def _present(x: Tensor, mask: Tensor | None) -> Tensor:
    """Return the features with 0 for absent nodes."""
    return x if mask is None else torch.where(mask[:, :, None], x, 0)


def _marginals(weights: Tensor | None, mask: Tensor | None, like: Tensor) -> Tensor:
    """Return (B, n) weights that sum to 1, or to 0 where no node is present."""
    w = torch.ones_like(like[:, 0])
    if weights is not None:
        w = weights.to(torch.promote_types(weights.dtype, like.dtype)).expand_as(w)
    w = w if mask is None else torch.where(mask, w, 0)
    w = scale_to_1(w).to(like.dtype)  # first: a sum may overflow, and another type be too narrow
    return w / w.sum(1, keepdim=True).clamp_min(1)


def check_options(phi: float, loss: str, solver: str, iterations: int, restarts: int) -> tuple[float, int, int]:
    """Raise unless `graph_ot` takes these settings; return the numbers."""
    check_option("loss", loss, ("abs", "square"))
    check_option("solver", solver, ("auto", "exact", "entropic"))
    numbers = check_fraction("phi", phi), check_count("iterations", iterations)
    return *numbers, check_count("restarts", restarts, minimum=0)


def _check_graphs(x: Tensor, y: Tensor, weights: dict[str, Tensor | None], masks: dict[str, Tensor | None]) -> None:
    """Raise unless the features of both graphs, and the given weights and masks, fit each other."""
    check_tensor("x", x, "B n d")
    check_tensor("y", y, "B m d", like=x, B=len(x), d=x.shape[2])
    for name, nodes in (("x", x), ("y", y)):
        if 0 in nodes.shape[1:]:
            raise ValueError(f"{name} must have at least one node and one feature, got shape {tuple(nodes.shape)}")
        w, mask = weights[name], masks[name]
        if mask is not None:
            check_tensor(f"mask_{name}", mask, "B n", kind="bool", like=x, B=len(x), n=nodes.shape[1])
        if w is not None:
            shape = "n" if isinstance(w, Tensor) and w.ndim == 1 else "B n"
            check_tensor(f"weights_{name}", w, shape, like=x, B=len(x), n=nodes.shape[1])
            bad = ~(w.isfinite() & (w >= 0)) & (torch.ones_like(w, dtype=torch.bool) if mask is None else mask)
            if not torch.compiler.is_compiling() and bad.any():
                value = float(w.expand_as(bad)[bad][0])
                raise ValueError(f"weights_{name} must be finite and at least 0, got {value}")
