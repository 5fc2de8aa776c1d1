"""Time and memory of all CIFT heads, forward and backward: ours, a plain loop over the 2N groups, the bare classifier.

The batch is the paper's: 8 identities x (4 visible + 4 infrared), features of size 2,048, 395 identities (SYSU-MM01).

- ``vireid``: BNNeck, classifier, H2FT, graph classifier, HCC x 3, CRI; every cross-entropy.
- ``loop``: the same modules and the same numbers, with one graph built for each of the 64 groups, twice (for X and for
  CRI's X*), and the HCC losses image by image. Loss and gradients are checked to agree before anything is timed.
- ``classifier``: BNNeck, linear classifier, cross-entropy; what a model has anyway.

Run ``python benchmarks/heads.py``; a table goes to the terminal and, with ``--output``, all figures to a JSON file.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from measure import PeakMemory, can_measure_memory, hardware, record, run_self, write_json
from vireid import INFRARED, VISIBLE
from vireid.losses import CRILoss, HCCLoss, query_gallery_cross_entropy
from vireid.nn import H2FT, BNNeck

IDENTITIES_IN_BATCH, PER_MODALITY, DIM, IDENTITIES, SEED = 8, 4, 2048, 395, 0
NAMES = ("vireid", "loop", "classifier")


class Heads(nn.Module):
    """Everything behind the backbone, and one batch for it: the parameters are shared by all three contenders."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.neck = BNNeck(DIM)
        self.classifier = nn.Linear(DIM, IDENTITIES, bias=False)
        self.transfer = H2FT(DIM)
        self.graph_classifier = nn.Linear(DIM, IDENTITIES, bias=False)
        self.cri = CRILoss(DIM)
        self.hcc_features = HCCLoss(margin=0.6)
        self.hcc_logits = HCCLoss(margin=6.0, distance="kl")
        names = torch.randperm(IDENTITIES)[:IDENTITIES_IN_BATCH]
        labels = names.repeat_interleave(2 * PER_MODALITY)
        modality = torch.tensor([VISIBLE, INFRARED]).repeat(len(labels) // 2)
        centers = torch.randn(IDENTITIES_IN_BATCH, DIM).repeat_interleave(2 * PER_MODALITY, 0)
        self.x: Tensor
        self.labels: Tensor
        self.modality: Tensor
        self.register_buffer("x", (centers + torch.randn(len(labels), DIM)).relu())
        self.register_buffer("labels", labels)
        self.register_buffer("modality", modality)
        self.to(device)
        self.x.requires_grad_()

    def vireid(self) -> Tensor:
        """All heads by the library."""
        features = self.neck(self.x)
        logits = self.classifier(features)
        out = self.transfer(features, self.modality)
        query, gallery = self.graph_classifier(out.query), self.graph_classifier(out.gallery)
        labels = self.labels[out.gallery_index]
        tie: Tensor = self.cri(self.transfer, features, self.modality, self.graph_classifier, self.labels, output=out)
        return (
            F.cross_entropy(logits, self.labels)
            + self.hcc_features(features, self.labels)
            + self.hcc_logits(logits, self.labels)
            + query_gallery_cross_entropy(query, gallery, self.labels, out.gallery_index)
            + self.hcc_logits(torch.cat([query, gallery]), torch.cat([self.labels, labels]))
            + tie
        )

    def loop(self) -> Tensor:
        """All heads with a loop over the groups and over the images."""
        features = self.neck(self.x)
        logits = self.classifier(features)
        values = self.transfer.value(features)
        y_g = self.graph_classifier(self._groups(values, values))
        z = torch.randn_like(features)
        self.transfer.value.eval()
        keys = self.transfer.value(self.cri.X_sigma * z + self.cri.X_mu)
        self.transfer.value.train()
        effect = y_g - self.graph_classifier(self._groups(keys, values))
        twice = torch.cat([self.labels, self.labels])
        return (
            F.cross_entropy(logits, self.labels)
            + _hcc_loop(F.normalize(features), self.labels, 0.6, _euclidean)
            + _hcc_loop(logits.softmax(1), self.labels, 6.0, _kl)
            + F.cross_entropy(y_g, twice)
            + _hcc_loop(y_g.softmax(1), twice, 6.0, _kl)
            + F.cross_entropy(effect, twice)
        )

    def bare(self) -> Tensor:
        """The classifier alone."""
        return F.cross_entropy(self.classifier(self.neck(self.x)), self.labels)

    def _groups(self, keys: Tensor, values: Tensor) -> Tensor:
        """(2B, d): f_q of each image, then F_G of each image, the mean of the (equal) ones of all its groups."""
        f_q: list[Tensor] = []
        f_g: list[list[Tensor]] = [[] for _ in keys]
        for q in range(len(keys)):
            gallery = (self.modality != self.modality[q]).nonzero().flatten()
            rows = torch.cat([gallery.new_tensor([q]), gallery])
            f_q.append(self._transfer(keys[rows], values[rows], self.transfer.tau_het)[0])
            for g, row in zip(
                gallery.tolist(), self._transfer(keys[gallery], values[gallery], self.transfer.tau_hom), strict=True
            ):
                f_g[g].append(row)
        return torch.stack(f_q + [torch.stack(rows).mean(0) for rows in f_g])

    def _transfer(self, keys: Tensor, values: Tensor, tau: float) -> Tensor:
        unit = F.normalize(keys)
        similarity = (unit @ unit.T / tau).exp()
        kept, index = similarity.topk(self.transfer.k, dim=1)
        affinity = torch.zeros_like(similarity).scatter(1, index, kept)
        return affinity / affinity.sum(1, keepdim=True) @ values


def _euclidean(image: Tensor, center: Tensor) -> Tensor:
    return (image - center).square().sum().sqrt()


def _kl(image: Tensor, center: Tensor) -> Tensor:
    return (image * (image.log() - center.log())).sum()


def _hcc_loop(rows: Tensor, labels: Tensor, margin: float, distance: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    centers = {identity: rows[labels == identity].mean(0) for identity in labels.unique().tolist()}
    losses = []
    for row, label in zip(rows, labels.tolist(), strict=True):
        pushes = [(margin - distance(row, c)).clamp_min(0) for identity, c in centers.items() if identity != label]
        losses.append(distance(row, centers[label]) + torch.stack(pushes).mean())
    return torch.stack(losses).mean()


def make_heads(device: torch.device) -> Heads:
    """The same modules and batch every time."""
    torch.manual_seed(SEED)
    return Heads(device).train()


def step(heads: Heads, name: str) -> Tensor:
    """One forward and backward pass; the loss. CRI's draw is the same in every call."""
    heads.zero_grad(set_to_none=True)
    heads.x.grad = None
    torch.manual_seed(SEED)
    loss = {"vireid": heads.vireid, "loop": heads.loop, "classifier": heads.bare}[name]()
    loss.backward()
    return loss.detach()


def check_agreement(device: torch.device) -> dict[str, float]:
    """Largest differences between ``vireid`` and ``loop``, relative to the largest entry; RuntimeError above 1e-3."""
    results = []
    for name in ("vireid", "loop"):
        heads = make_heads(device)
        loss = step(heads, name)
        found: dict[str, Tensor | None] = {"loss": loss, "x": heads.x.grad}
        results.append(found | {n: p.grad for n, p in heads.named_parameters() if p.requires_grad})
    ours, loop = results
    differences = {}
    for name, expected in loop.items():
        got = ours[name]
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


def measure_time(device: torch.device, repeats: int) -> dict[str, list[float]]:
    """Seconds of each step; the contenders take turns, so that a slow spell of the machine hits all of them."""
    heads = make_heads(device)
    seconds: dict[str, list[float]] = {name: [] for name in NAMES}
    for turn in range(repeats + 2):
        for name in NAMES:
            synchronize(device)
            start = time.perf_counter()
            step(heads, name)
            synchronize(device)
            if turn >= 2:  # the first two are warm-up
                seconds[name].append(time.perf_counter() - start)
    return seconds


def peak_memory(device: torch.device, name: str) -> int:
    """Bytes that two steps take at their peak beyond the modules and the batch, gradients included."""
    heads = make_heads(device)
    torch.ones(64, 64, requires_grad=True).matmul(torch.ones(64, 64)).sum().backward()  # libraries and threads
    with PeakMemory(device) as peak:
        for _ in range(2):
            step(heads, name)
    return peak.bytes


def measure_memory(arguments: argparse.Namespace) -> dict[str, int | None]:
    """`peak_memory` of each contender in its own process; None where the system does not say."""
    if not can_measure_memory(torch.device(arguments.device)):
        return dict.fromkeys(NAMES)
    options = ["--device", arguments.device, "--threads", str(arguments.threads)]
    return {name: int(run_self(__file__, ["--peak-memory-of", name, *options])) for name in NAMES}


def main() -> None:
    """Check, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15, help="timed steps of each contender")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--peak-memory-of", choices=NAMES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.repeats < 1 or arguments.threads < 1:
        parser.error("--repeats and --threads must be at least 1")
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    if arguments.peak_memory_of:
        print(peak_memory(device, arguments.peak_memory_of))
        return

    differences = check_agreement(device)
    memory = measure_memory(arguments)
    seconds = measure_time(device, arguments.repeats)
    base = statistics.median(seconds["classifier"])
    results: dict[str, object] = {}
    print(f"{hardware(device)}, {arguments.threads} thread(s), torch {torch.__version__}, {arguments.repeats} repeats")
    print(f"vireid and loop agree to {max(differences.values()):.1e} (loss and every gradient, relative)")
    print(f"{'':12}{'median ms':>12}{'quartiles ms':>20}{'x classifier':>14}{'peak MiB':>10}")
    for name in NAMES:
        times = seconds[name]
        median = statistics.median(times)
        low, _, high = statistics.quantiles(times, n=4) if len(times) > 1 else (median, median, median)
        peak = memory[name]
        shown = "-" if peak is None else f"{peak / 2**20:.1f}"
        quartiles = f"{low * 1e3:.2f} - {high * 1e3:.2f}"
        print(f"{name:12}{median * 1e3:12.2f}{quartiles:>20}{median / base:14.1f}{shown:>10}")
        results[name] = {"seconds": times, "median_s": median, "quartiles_s": [low, high], "peak_bytes": peak}
    if arguments.output:
        content: dict[str, object] = {
            "benchmark": "CIFT heads, forward and backward",
            "batch": {"identities": IDENTITIES_IN_BATCH, "per_modality": PER_MODALITY, "dim": DIM},
            "classes": IDENTITIES,
            "seed": SEED,
            **record(device),
            "relative_differences_to_loop": differences,
            "results": results,
        }
        write_json(arguments.output, content)


if __name__ == "__main__":
    main()
