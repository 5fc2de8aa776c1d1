"""Time, memory and quality of optimal transport between the nodes of paired graphs: ours and POT's.

The pairs are those of G2DA: 14 nodes with features of size 2,048, φ = 0.5. With ``--data matched`` the graphs of a
pair have the same nodes, seen with noise and in another order; with ``--data unrelated`` they have nothing in common;
with ``--data weighted`` the second graph of a matched pair lacks four nodes, and nodes have weights from 1 to 2, in
their order: what our exact solver gives to POT's network simplex.

- ``exact``, ``entropic``: `vireid.ot.graph_ot`, for both losses.
- ``POT loop``: `ot.gromov.fused_gromov_wasserstein2` pair by pair from its own start, on the same torch tensors.
- ``POT batch``: `ot.batch.solve_gromov_batch` with its own settings (ε 0.01, at most 50 x 50 iterations), and with
  ε 0.1 and 10 x 20.
- ``products``: the three products that give the cosine distances, and no more: what every contender needs.

Times are divided by those of the bare products and of POT's loop (which is that of the squared loss).

POT has no solver for the absolute loss. The gap of a pair is that to the lowest cost of our exact solver from 20
further starts and of POT's loop; the cost is taken at the contender's own plan. A plan that misses its marginals may
cost less than the optimum: the marginal error (the larger of the row sums' and the column sums' absolute differences,
the worst of all pairs) stands beside the gap. POT's loop must not cost less than our exact solver by more than 1e-4 of
the cost in the mean, or nothing is timed.

    python -m benchmarks.speed.graph_ot --repeats 5 --output graph_ot.csv

``--quick`` takes few, small pairs, to see that it runs.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

import ot
from benchmarks.speed import measure
from vireid.ot import graph_ot

MODULE = "benchmarks.speed.graph_ot"
NODES, DIM, PHI, SEED = 14, 2048, 0.5, 0
WAYS = ("forward", "forward and backward")
CONTENDERS = {
    "abs": ("exact", "entropic"),
    "square": ("exact", "entropic", "POT loop", "POT batch", "POT batch, 10 x 20"),
}


class Task(NamedTuple):
    """One contender of the table."""

    loss: str
    name: str
    pairs: int

    def __str__(self) -> str:
        return f"{self.loss}/{self.name}/{self.pairs}"

    @property
    def label(self) -> str:
        """Name of the contender in the tables."""
        return self.name if self.name == "products" else f"{self.name}, {self.loss}"


def make_pairs(task: Task, arguments: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Return features (B, 14, d) of both graphs, the same in every call."""
    draw = torch.Generator().manual_seed(SEED)
    nodes, x, y = torch.randn(3, task.pairs, NODES, arguments.dim, generator=draw).unbind(0)
    if arguments.data == "matched":
        order = torch.rand(task.pairs, NODES, generator=draw).argsort(1)
        x, y = x + nodes, (y + nodes).gather(1, order[:, :, None].expand_as(y))
    elif arguments.data == "weighted":
        x, y = x + nodes, (y + nodes)[:, :-4].flip(1)
    return x.to(arguments.device), y.to(arguments.device)


def cosine_distances(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return 1 - cos between x and y, within x, within y, for contenders that take distances."""
    x, y = torch.nn.functional.normalize(x, dim=-1), torch.nn.functional.normalize(y, dim=-1)
    return 1 - x @ y.mT, 1 - x @ x.mT, 1 - y @ y.mT


def sum_of_products(x: Tensor, y: Tensor) -> Tensor:
    """Return a number that depends on three products."""
    return (x @ y.mT).sum((1, 2)) + (x @ x.mT).sum((1, 2)) + (y @ y.mT).sum((1, 2))


def weights_of(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return weights (n,) and (m,) that sum to 1: uniform for graphs of one size, else from 1 to 2."""
    rising = 1.0 if x.shape[1] == y.shape[1] else 2.0
    u, v = (torch.linspace(1, rising, nodes.shape[1], dtype=x.dtype, device=x.device) for nodes in (x, y))
    return u / u.sum(), v / v.sum()


def solve(task: Task, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return costs (B,) and plans (B, 14, 14); POT's loop gives no plans where a gradient is wanted, but empty ones."""
    if task.name == "products":
        return sum_of_products(x, y), x.new_empty(0)
    u, v = weights_of(x, y)
    if task.name in ("exact", "entropic"):
        out = graph_ot(x, y, phi=PHI, loss=task.loss, weights_x=u, weights_y=v, solver=task.name)  # type: ignore[arg-type]
        return out.cost, out.plan
    if task.name == "POT loop":
        costs, plans = [], []
        for a, b in zip(x, y, strict=True):
            cost, log = ot.gromov.fused_gromov_wasserstein2(*cosine_distances(a, b), u, v, alpha=1 - PHI, log=True)
            costs.append(cost)
            plans.append(log["T"])
        return torch.stack(costs), torch.stack(plans)
    options: dict[str, Any] = {} if task.name == "POT batch" else {"reg": 0.1, "max_iter": 10, "max_iter_inner": 20}
    cost, cx, cy = cosine_distances(x, y)
    options |= {"a": u.expand(len(x), -1), "b": v.expand(len(y), -1)}
    out = ot.batch.solve_gromov_batch(cx, cy, M=cost, alpha=1 - PHI, symmetric=True, **options)
    return out.value, out.plan


def step(task: Task, x: Tensor, y: Tensor, *, backward: bool) -> Tensor:
    """Return the plans; a forward pass without gradients, or one with a backward pass to the features."""
    with torch.set_grad_enabled(backward):
        cost, plan = solve(task, x.requires_grad_(backward), y.requires_grad_(backward))
    if backward:
        x.grad = y.grad = None
        cost.sum().backward()
    return plan.detach()


def cost_of(plan: Tensor, x: Tensor, y: Tensor, loss: str) -> Tensor:
    """Return the objective (B,) at the plans by its definition, in double precision."""
    cost, cx, cy = cosine_distances(x.double(), y.double())
    values = []
    for b, t in enumerate(plan.double()):
        difference = cx[b][:, None, :, None] - cy[b][None, :, None, :]
        four = difference.abs() if loss == "abs" else difference.square()
        values.append(PHI * (cost[b] * t).sum() + (1 - PHI) * (four * t[:, :, None, None] * t).sum())
    return torch.stack(values)


@torch.no_grad()
def quality(tasks: list[Task], arguments: argparse.Namespace) -> dict[Task, dict[str, float]]:
    """Return mean and largest relative gap, and the marginal error, of each task that gives plans."""
    found = {}
    for loss in CONTENDERS:
        for pairs in sorted({task.pairs for task in tasks}):
            group = [t for t in tasks if (t.loss, t.pairs) == (loss, pairs) and t.name != "products"]
            x, y = make_pairs(group[0], arguments)
            plans = {t: step(t, x, y, backward=False) for t in group}
            costs = {t: cost_of(plan, x, y, loss) for t, plan in plans.items()}
            u, v = (w.double() for w in weights_of(x, y))
            settings: dict[str, Any] = {"loss": loss, "weights_x": u, "weights_y": v, "restarts": 20}
            best = graph_ot(x.double(), y.double(), phi=PHI, solver="exact", **settings).cost
            for t in group:
                if t.name in ("exact", "POT loop"):  # their plans meet the marginals
                    best = torch.minimum(best, costs[t])
            for t, plan in plans.items():
                gap = (costs[t] - best) / best
                errors = [(plan.sum(d) - w).abs().sum(1).max() for d, w in ((1, v), (2, u))]
                found[t] = {
                    "gap_mean": float(gap.mean()),
                    "gap_max": float(gap.max()),
                    "marginal_error": float(max(errors)),
                }
            loop = next((t for t in group if t.name == "POT loop"), None)
            if loop and found[group[0]]["gap_mean"] > found[loop]["gap_mean"] + 1e-4:
                raise RuntimeError(f"the exact solver must not cost more than POT's loop, got {found}")
    return found


def peak_memory(task: Task, arguments: argparse.Namespace) -> int:
    """Return the bytes that a forward and a backward pass take at their peak beyond the features."""
    x, y = make_pairs(task, arguments)
    step(task, x[:2].clone(), y[:2].clone(), backward=True)  # libraries and threads
    with measure.PeakMemory(torch.device(arguments.device)) as peak:
        step(task, x, y, backward=True)
    return peak.bytes


def main(given: Sequence[str] | None = None) -> None:
    """Check, measure, print."""
    parser = measure.options_parser(__doc__, repeats=7)
    parser.add_argument("--pairs", type=int, nargs="+", default=[32, 256], help="pairs in a batch")
    parser.add_argument("--dim", type=int, default=DIM, help="feature size")
    parser.add_argument("--data", choices=("matched", "unrelated", "weighted"), default="matched")
    parser.add_argument("--quick", action="store_true", help="2 pairs, d = 16, one repeat, no memory")
    parser.add_argument("--peak-memory-of", help=argparse.SUPPRESS)
    arguments = measure.parse(parser, given)
    if arguments.quick:
        arguments.pairs, arguments.dim, arguments.repeats = [2], 16, 1
    if arguments.peak_memory_of:
        loss, name, pairs = arguments.peak_memory_of.split("/")
        print(peak_memory(Task(loss, name, int(pairs)), arguments))
        return

    device = torch.device(arguments.device)
    tasks = [Task("square", "products", pairs) for pairs in arguments.pairs]
    tasks += [Task(loss, name, n) for loss, names in CONTENDERS.items() for name in names for n in arguments.pairs]
    good = quality(tasks, arguments)
    about = measure.announce(arguments, device, ["POT"])
    data = {task.pairs: make_pairs(task, arguments) for task in tasks}
    cases = {
        (task, way): partial(step, task, *data[task.pairs], backward=way == WAYS[1]) for task in tasks for way in WAYS
    }
    seconds = measure.measure_in_turns(cases, arguments.repeats, device)
    rows = []
    for (task, way), times in seconds.items():
        size = f"{task.pairs} pairs, {NODES} nodes, d {arguments.dim}, {arguments.data}"
        found = dict(good.get(task, {})) if way == WAYS[0] else {}
        if way == WAYS[1] and measure.can_measure_memory(device) and not arguments.quick:
            found["peak_bytes"] = int(measure.run_self(MODULE, [*arguments.given, "--peak-memory-of", str(task)]))
        rows += measure.figures(way, size, task.label, times, **found)
    measure.show(rows, "products", "POT loop, square")
    measure.save(arguments, MODULE, rows, {"phi": PHI, "seed": SEED, **about})


if __name__ == "__main__":
    main()
