"""Time and memory of a method's heads, forward and backward: ours, a plain loop, a bare classifier.

``--method cift`` (the default): `heads_cift.py`. ``--method saai``: `heads_saai.py`. Each says what its contenders are.
The loss and every gradient of ``vireid`` and ``loop`` are checked to agree before anything is timed. Time: the
contenders take turns in one process. Memory: each in a fresh process of its own.

    python -m benchmarks.speed.heads --method saai --threads 2 --output heads_saai.csv
"""

import argparse
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from benchmarks.speed import heads_cift, heads_saai, measure

SEED = 0
METHODS = {"cift": heads_cift, "saai": heads_saai}
MODULE = "benchmarks.speed.heads"
Heads = heads_cift.Heads | heads_saai.Heads


def make_heads(method: str, device: torch.device, identities: int | None = None) -> Heads:
    """Return the same modules and batch every time; ``identities`` in the batch, by default the paper's number."""
    torch.manual_seed(SEED)
    module = METHODS[method]
    heads: Heads = module.Heads(device, module.IDENTITIES_IN_BATCH if identities is None else identities)
    return heads.train()


def step(heads: Heads, name: str) -> Tensor:
    """Run one forward and backward pass and return the loss. CRI's draw is the same in every call."""
    heads.zero_grad(set_to_none=True)
    heads.x.grad = None
    torch.manual_seed(SEED)
    loss = heads.loss(name)
    loss.backward()
    return loss.detach()


def check_agreement(method: str, device: torch.device, identities: int | None = None) -> dict[str, float]:
    """Return the largest differences between ``vireid`` and ``loop``, relative to the largest entry.

    Raises:
        RuntimeError: if one of them is not below 1e-3.
    """
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


def peak_memory(heads: Heads, name: str, device: torch.device) -> int:
    """Return the bytes that two steps take at their peak beyond the modules and the batch, gradients included."""
    torch.ones(64, 64, requires_grad=True).matmul(torch.ones(64, 64)).sum().backward()  # libraries and threads
    with measure.PeakMemory(device) as peak:
        for _ in range(2):
            step(heads, name)
    return peak.bytes


def main(given: Sequence[str] | None = None) -> None:
    """Check, measure, print."""
    parser = measure.options_parser(__doc__, repeats=15)
    parser.add_argument("--method", choices=METHODS, default="cift", help="whose heads")
    parser.add_argument("--identities", type=int, help="identities in the batch, 8 images each")
    parser.add_argument("--peak-memory-of", help=argparse.SUPPRESS)
    arguments = measure.parse(parser, given)
    module = METHODS[arguments.method]
    identities = module.IDENTITIES_IN_BATCH if arguments.identities is None else arguments.identities
    if not 2 <= identities <= module.IDENTITIES:
        parser.error(f"--identities must be from 2 to {module.IDENTITIES}")
    if arguments.peak_memory_of not in (None, *module.NAMES):
        parser.error(f"--peak-memory-of must be one of {', '.join(module.NAMES)}")
    device = torch.device(arguments.device)
    if arguments.peak_memory_of:
        print(peak_memory(make_heads(arguments.method, device, identities), arguments.peak_memory_of, device))
        return

    differences = check_agreement(arguments.method, device, identities)
    heads = make_heads(arguments.method, device, identities)
    about = measure.announce(arguments, device)
    print(f"vireid and loop agree to {max(differences.values()):.1e} (loss and every gradient, relative)")
    seconds = measure.measure_in_turns(
        {n: partial(step, heads, n) for n in module.NAMES}, arguments.repeats, device, warm_up=2
    )
    size = f"{identities} identities x {2 * module.PER_MODALITY} images, {module.SHAPE}, {module.IDENTITIES} classes"
    rows = []
    for name in module.NAMES:
        peak = None
        if measure.can_measure_memory(device):
            peak = int(measure.run_self(MODULE, [*arguments.given, "--peak-memory-of", name]))
        rows += measure.figures(module.TITLE, size, name, seconds[name], peak_bytes=peak)
    rows += measure.figures(module.TITLE, size, "vireid", difference_to_loop=max(differences.values()))
    measure.show(rows, *module.BASES)
    measure.save(arguments, MODULE, rows, {"seed": SEED, **about})


if __name__ == "__main__":
    main()
