"""Time, memory and quality of optimal transport between the nodes of paired graphs: ours and POT's.

The pairs are those of G2DA: 14 nodes with features of size 2,048, φ = 0.5. With ``--data matched`` the graphs of a
pair have the same nodes, seen with noise and in another order; with ``--data unrelated`` they have nothing in common.

- ``exact``, ``entropic``: `vireid.ot.graph_ot`, for both losses.
- ``POT loop``: `ot.gromov.fused_gromov_wasserstein2` pair by pair from its own start, on the same torch tensors.
- ``POT batch``: `ot.batch.solve_gromov_batch` with its own settings (ε 0.01, at most 50 x 50 iterations), and with
  ε 0.1 and 10 x 20.
- ``products``: the three products that give the cosine distances, and no more: what every contender needs.

The columns ``faster`` say how many times the time of POT's loop (which is that of the squared loss) is the
contender's, forward and with backward; ``products`` how many times the bare products the contender takes, forward.

POT has no solver for the absolute loss. The gap of a pair is that to the lowest cost of our exact solver from 20
further starts and of POT's loop; the cost is taken at the contender's own plan. A plan that misses its marginals may
cost less than the optimum: the marginal error (the larger of the row sums' and the column sums' absolute differences,
the worst of all pairs) stands beside the gap. POT's loop must not cost less than our exact solver by more than 1e-4 of
the cost in the mean, or nothing is timed.

Run ``python -m benchmarks.speed.graph_ot``; a table goes to the terminal and, with ``--output``, all figures to a file.
``--quick`` takes few, small pairs, to see that it runs.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import ot
from benchmarks.speed.measure import PeakMemory, can_measure_memory, hardware, record, run_self, write_json
from vireid.ot import graph_ot

NODES, DIM, PHI, SEED = 14, 2048, 0.5, 0
CONTENDERS = {
    "abs": ("exact", "entropic"),
    "square": ("exact", "entropic", "POT loop", "POT batch", "POT batch, 10 x 20"),
}


class Task(NamedTuple):
    """One line of the table."""

    loss: str
    name: str
    pairs: int

    def __str__(self) -> str:
        return f"{self.loss}/{self.name}/{self.pairs}"


def make_pairs(task: Task, arguments: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Features (B, 14, d) of both graphs, the same in every call."""
    draw = torch.Generator().manual_seed(SEED)
    nodes, x, y = torch.randn(3, task.pairs, NODES, arguments.dim, generator=draw).unbind(0)
    if arguments.data == "matched":
        order = torch.rand(task.pairs, NODES, generator=draw).argsort(1)
        x, y = x + nodes, (y + nodes).gather(1, order[:, :, None].expand_as(y))
    return x.to(arguments.device), y.to(arguments.device)


def cosine_distances(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """1 - cos between x and y, within x, within y, for contenders that take distances."""
    x, y = torch.nn.functional.normalize(x, dim=-1), torch.nn.functional.normalize(y, dim=-1)
    return 1 - x @ y.mT, 1 - x @ x.mT, 1 - y @ y.mT


def sum_of_products(x: Tensor, y: Tensor) -> Tensor:
    """Three products, and a number that depends on all of them."""
    return (x @ y.mT).sum((1, 2)) + (x @ x.mT).sum((1, 2)) + (y @ y.mT).sum((1, 2))


def solve(task: Task, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Costs (B,) and plans (B, 14, 14); POT's loop gives no plans where a gradient is wanted, but empty ones."""
    if task.name == "products":
        return sum_of_products(x, y), x.new_empty(0)
    if task.name in ("exact", "entropic"):
        out = graph_ot(x, y, phi=PHI, loss=task.loss, solver=task.name)  # type: ignore[arg-type]
        return out.cost, out.plan
    if task.name == "POT loop":
        costs, plans = [], []
        for a, b in zip(x, y, strict=True):
            cost, log = ot.gromov.fused_gromov_wasserstein2(*cosine_distances(a, b), alpha=1 - PHI, log=True)
            costs.append(cost)
            plans.append(log["T"])
        return torch.stack(costs), torch.stack(plans)
    options = {} if task.name == "POT batch" else {"reg": 0.1, "max_iter": 10, "max_iter_inner": 20}
    cost, cx, cy = cosine_distances(x, y)
    out = ot.batch.solve_gromov_batch(cx, cy, M=cost, alpha=1 - PHI, symmetric=True, **options)
    return out.value, out.plan


def step(task: Task, x: Tensor, y: Tensor, *, backward: bool) -> Tensor:
    """The plans; a forward pass without gradients, or one with a backward pass to the features."""
    with torch.set_grad_enabled(backward):
        cost, plan = solve(task, x.requires_grad_(backward), y.requires_grad_(backward))
    if backward:
        x.grad = y.grad = None
        cost.sum().backward()
    return plan.detach()


def cost_of(plan: Tensor, x: Tensor, y: Tensor, loss: str) -> Tensor:
    """The objective (B,) at the plans by its definition, in double precision."""
    cost, cx, cy = cosine_distances(x.double(), y.double())
    values = []
    for b, t in enumerate(plan.double()):
        difference = cx[b][:, None, :, None] - cy[b][None, :, None, :]
        four = difference.abs() if loss == "abs" else difference.square()
        values.append(PHI * (cost[b] * t).sum() + (1 - PHI) * (four * t[:, :, None, None] * t).sum())
    return torch.stack(values)


@torch.no_grad()
def quality(tasks: list[Task], arguments: argparse.Namespace) -> dict[Task, dict[str, float]]:
    """Mean and largest relative gap, and the marginal error, of each task that gives plans."""
    found = {}
    for loss in CONTENDERS:
        for pairs in sorted({task.pairs for task in tasks}):
            group = [t for t in tasks if (t.loss, t.pairs) == (loss, pairs) and t.name != "products"]
            x, y = make_pairs(group[0], arguments)
            plans = {t: step(t, x, y, backward=False) for t in group}
            costs = {t: cost_of(plan, x, y, loss) for t, plan in plans.items()}
            best = graph_ot(x.double(), y.double(), phi=PHI, loss=loss, solver="exact", restarts=20).cost  # type: ignore[arg-type]
            for t in group:
                if t.name in ("exact", "POT loop"):  # their plans meet the marginals
                    best = torch.minimum(best, costs[t])
            for t, plan in plans.items():
                gap = (costs[t] - best) / best
                errors = [(plan.sum(d) - 1 / NODES).abs().sum(1).max() for d in (1, 2)]
                found[t] = {
                    "gap_mean": float(gap.mean()),
                    "gap_max": float(gap.max()),
                    "marginal_error": float(max(errors)),
                }
            loop = next((t for t in group if t.name == "POT loop"), None)
            if loop and found[group[0]]["gap_mean"] > found[loop]["gap_mean"] + 1e-4:
                raise RuntimeError(f"the exact solver must not cost more than POT's loop, got {found}")
    return found


def synchronize(device: torch.device) -> None:
    """Wait for a GPU; nothing to wait for on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_time(tasks: list[Task], arguments: argparse.Namespace) -> dict[tuple[Task, bool], list[float]]:
    """Seconds of each task without and with backward; they take turns, so that a slow spell hits all of them."""
    device = torch.device(arguments.device)
    seconds: dict[tuple[Task, bool], list[float]] = {(task, b): [] for task in tasks for b in (False, True)}
    for turn in range(arguments.repeats + 1):
        for (task, backward), times in seconds.items():
            x, y = make_pairs(task, arguments)
            synchronize(device)
            start = time.perf_counter()
            step(task, x, y, backward=backward)
            synchronize(device)
            if turn:  # the first is warm-up
                times.append(time.perf_counter() - start)
    return seconds


def peak_memory(task: Task, arguments: argparse.Namespace) -> int:
    """Bytes that a forward and a backward pass take at their peak beyond the features."""
    x, y = make_pairs(task, arguments)
    step(task, x[:2].clone(), y[:2].clone(), backward=True)  # libraries and threads
    with PeakMemory(torch.device(arguments.device)) as peak:
        step(task, x, y, backward=True)
    return peak.bytes


def measure_memory(tasks: list[Task], arguments: argparse.Namespace) -> dict[Task, int | None]:
    """`peak_memory` of each task in its own process; None where the system does not say."""
    if not can_measure_memory(torch.device(arguments.device)):
        return dict.fromkeys(tasks)
    options = ["--device", arguments.device, "--threads", str(arguments.threads), "--data", arguments.data]
    options += ["--dim", str(arguments.dim)]
    return {
        task: int(run_self("benchmarks.speed.graph_ot", ["--peak-memory-of", str(task), *options])) for task in tasks
    }


def main(argv: list[str] | None = None) -> None:
    """Check, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="+", default=[32, 256], help="pairs in a batch")
    parser.add_argument("--dim", type=int, default=DIM, help="feature size")
    parser.add_argument("--data", choices=("matched", "unrelated"), default="matched")
    parser.add_argument("--repeats", type=int, default=7, help="timed passes of each contender")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--quick", action="store_true", help="4 pairs, d = 16, one repeat, no memory")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--peak-memory-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if min(arguments.repeats, arguments.threads, arguments.dim, *arguments.pairs) < 1:
        parser.error("--pairs, --dim, --repeats and --threads must be at least 1")
    if arguments.quick:
        arguments.pairs, arguments.dim, arguments.repeats = [4], 16, 1
    torch.set_num_threads(arguments.threads)
    if arguments.peak_memory_of:
        loss, name, pairs = arguments.peak_memory_of.split("/")
        print(peak_memory(Task(loss, name, int(pairs)), arguments))
        return

    tasks = [Task("square", "products", pairs) for pairs in arguments.pairs]
    tasks += [Task(loss, name, n) for loss, names in CONTENDERS.items() for name in names for n in arguments.pairs]
    good = quality(tasks, arguments)
    memory = dict.fromkeys(tasks) if arguments.quick else measure_memory(tasks, arguments)
    seconds = measure_time(tasks, arguments)
    device = torch.device(arguments.device)
    print(f"{hardware(device)}, {arguments.threads} thread(s), torch {torch.__version__}, POT {ot.__version__}")
    print(f"{arguments.data} pairs, d = {arguments.dim}, {arguments.repeats} repeats; medians, µs a pair")
    print(f"{'loss':8}{'':20}{'pairs':>6}{'forward':>10}{'+ backward':>12}", end="")
    print(f"{'gap':>9}{'largest':>9}{'marginals':>11}{'peak MiB':>10}")
    middle = {key: statistics.median(times) for key, times in seconds.items()}
    results = []
    for task in tasks:
        loop = Task("square", "POT loop", task.pairs)
        faster = [middle[loop, b] / middle[task, b] for b in (False, True)]
        over = middle[task, False] / middle[Task("square", "products", task.pairs), False]
        times = {name: seconds[task, b] for name, b in (("forward", False), ("forward_backward", True))}
        median = {name: middle[task, b] for name, b in (("forward", False), ("forward_backward", True))}
        mine, peak = good.get(task), memory[task]
        each = [f"{median[name] / task.pairs * 1e6:.0f}" for name in times]
        shown = "-" if peak is None else f"{peak / 2**20:.1f}"
        gaps = (
            f"{mine['gap_mean']:9.3%}{mine['gap_max']:9.3%}{mine['marginal_error']:11.1e}"
            if mine
            else f"{'-':>9}{'-':>9}{'-':>11}"
        )
        ratios = f"{faster[0]:7.1f}x{faster[1]:6.1f}x{over:9.1f}x"
        loss = "" if task.name == "products" else task.loss
        print(f"{loss:8}{task.name:20}{task.pairs:6}{each[0]:>9}{each[1]:>12}{ratios}{gaps}{shown:>10}")
        figures = {"seconds": times, "median_s": median, "times_faster_than_pot_loop": faster, "times_products": over}
        results.append({**task._asdict(), **figures, "quality": mine, "peak_bytes": peak})
    if arguments.output:
        content: dict[str, object] = {
            "benchmark": "optimal transport between paired graphs",
            "data": {"kind": arguments.data, "nodes": NODES, "dim": arguments.dim, "phi": PHI, "seed": SEED},
            "pot": ot.__version__,
            **record(device),
            "results": results,
        }
        write_json(arguments.output, content)


if __name__ == "__main__":
    main()
