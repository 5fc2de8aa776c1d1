"""Time and memory of a method's heads, forward and backward: ours, a plain loop, what a model has anyway.

``--method cift`` (the default): `heads_cift.py`. ``--method saai``: `heads_saai.py`. Each says what its contenders are.
The loss and every gradient of ``vireid`` and ``loop`` are checked to agree before anything is timed. Time: the
contenders take turns in one process. Memory: each in a fresh process of its own.

Run ``python -m benchmarks.speed.heads``; a table goes to the terminal and, with ``--output``, all figures to a file.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.speed import heads_cift, heads_saai
from benchmarks.speed.measure import PeakMemory, can_measure_memory, hardware, record, run_self, write_json

SEED = 0
METHODS = {"cift": heads_cift, "saai": heads_saai}
Heads = heads_cift.Heads | heads_saai.Heads


def make_heads(method: str, device: torch.device, identities: int | None = None) -> Heads:
    """The same modules and batch every time; ``identities`` in the batch, by default as many as in the paper."""
    torch.manual_seed(SEED)
    module = METHODS[method]
    heads: Heads = module.Heads(device, module.IDENTITIES_IN_BATCH if identities is None else identities)
    return heads.train()


def step(heads: Heads, name: str) -> Tensor:
    """One forward and backward pass; the loss. CRI's draw is the same in every call."""
    heads.zero_grad(set_to_none=True)
    heads.x.grad = None
    torch.manual_seed(SEED)
    loss = heads.loss(name)
    loss.backward()
    return loss.detach()


def check_agreement(method: str, device: torch.device, identities: int | None = None) -> dict[str, float]:
    """Largest differences between ``vireid`` and ``loop``, relative to the largest entry; RuntimeError above 1e-3."""
    results = []
    for name in ("vireid", "loop"):
        heads = make_heads(method, device, identities)
        found: dict[str, Tensor | None] = {"loss": step(heads, name), "x": heads.x.grad}
        results.append(found | {n: p.grad for n, p in heads.named_parameters() if p.requires_grad})
    ours, loop = results
    differences = {}
    for name, expected in loop.items():
        got = ours[name]
        if expected is None and got is None and name.startswith(METHODS[method].UNUSED):
            continue
        if expected is None or got is None:
            raise RuntimeError(f"{name} has no gradient")
        differences[name] = float((got - expected).abs().max() / expected.abs().max())
    wrong = {name: d for name, d in differences.items() if not d < 1e-3}
    if wrong:
        raise RuntimeError(f"vireid and the loop must agree to 1e-3, got relative differences {wrong}")
    return differences


def synchronize(device: torch.device) -> None:
    """Wait for a GPU; nothing to wait for on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_time(heads: Heads, names: Sequence[str], device: torch.device, repeats: int) -> dict[str, list[float]]:
    """Seconds of each step; the contenders take turns, so that a slow spell of the machine hits all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(repeats + 2):
        for name in names:
            synchronize(device)
            start = time.perf_counter()
            step(heads, name)
            synchronize(device)
            if turn >= 2:  # the first two are warm-up
                seconds[name].append(time.perf_counter() - start)
    return seconds


def peak_memory(heads: Heads, name: str, device: torch.device) -> int:
    """Bytes that two steps take at their peak beyond the modules and the batch, gradients included."""
    torch.ones(64, 64, requires_grad=True).matmul(torch.ones(64, 64)).sum().backward()  # libraries and threads
    with PeakMemory(device) as peak:
        for _ in range(2):
            step(heads, name)
    return peak.bytes


def measure_memory(arguments: argparse.Namespace, names: Sequence[str]) -> dict[str, int | None]:
    """`peak_memory` of each contender in its own process; None where the system does not say."""
    if not can_measure_memory(torch.device(arguments.device)):
        return dict.fromkeys(names)
    options = ["--method", arguments.method, "--device", arguments.device, "--threads", str(arguments.threads)]
    if arguments.identities is not None:
        options += ["--identities", str(arguments.identities)]
    return {name: int(run_self("benchmarks.speed.heads", ["--peak-memory-of", name, *options])) for name in names}


def main(argv: Sequence[str] | None = None) -> None:
    """Check, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=METHODS, default="cift", help="whose heads")
    parser.add_argument("--identities", type=int, help="identities in the batch, 8 images each")
    parser.add_argument("--repeats", type=int, default=15, help="timed steps of each contender")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--peak-memory-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    module = METHODS[arguments.method]
    identities = module.IDENTITIES_IN_BATCH if arguments.identities is None else arguments.identities
    if arguments.repeats < 1 or arguments.threads < 1:
        parser.error("--repeats and --threads must be at least 1")
    if not 2 <= identities <= module.IDENTITIES:
        parser.error(f"--identities must be from 2 to {module.IDENTITIES}")
    if arguments.peak_memory_of not in (None, *module.NAMES):
        parser.error(f"--peak-memory-of must be one of {', '.join(module.NAMES)}")
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    if arguments.peak_memory_of:
        print(peak_memory(make_heads(arguments.method, device, identities), arguments.peak_memory_of, device))
        return

    differences = check_agreement(arguments.method, device, identities)
    memory = measure_memory(arguments, module.NAMES)
    heads = make_heads(arguments.method, device, identities)
    seconds = measure_time(heads, module.NAMES, device, arguments.repeats)
    bases = {base: statistics.median(seconds[base]) for base in module.BASES}
    results: dict[str, object] = {}
    print(f"{hardware(device)}, {arguments.threads} thread(s), torch {torch.__version__}, {arguments.repeats} repeats")
    print(f"{module.TITLE}, {len(heads.x)} images")
    print(f"vireid and loop agree to {max(differences.values()):.1e} (loss and every gradient, relative)")
    ratios = "".join(f"{'x ' + base:>14}" for base in bases)
    print(f"{'':12}{'median ms':>12}{'quartiles ms':>20}{ratios}{'peak MiB':>10}")
    for name in module.NAMES:
        times = seconds[name]
        median = statistics.median(times)
        low, _, high = statistics.quantiles(times, n=4) if len(times) > 1 else (median, median, median)
        peak = memory[name]
        shown = "-" if peak is None else f"{peak / 2**20:.1f}"
        quartiles = f"{low * 1e3:.2f} - {high * 1e3:.2f}"
        ratios = "".join(f"{median / base:14.1f}" for base in bases.values())
        print(f"{name:12}{median * 1e3:12.2f}{quartiles:>20}{ratios}{shown:>10}")
        results[name] = {"seconds": times, "median_s": median, "quartiles_s": [low, high], "peak_bytes": peak}
    if arguments.output:
        content: dict[str, object] = {
            "benchmark": module.TITLE,
            "batch": {"identities": identities, "per_modality": module.PER_MODALITY, **module.SHAPE},
            "classes": module.IDENTITIES,
            "seed": SEED,
            **record(device),
            "relative_differences_to_loop": differences,
            "results": results,
        }
        write_json(arguments.output, content)


if __name__ == "__main__":
    main()
