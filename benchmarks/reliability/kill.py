"""Kill processes at random moments while they train or save, and look at what they leave.

Each process is forked from this one, which has imported everything, so that the moments fall into the work itself.
"""

import contextlib
import importlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

RUN = ["--set", "size=32,16", "--set", "batches=2", "--set", "identities=2", "--set", "per_modality=2"]
EPOCHS = 6


def forked(work: Callable[[], object]) -> int:
    """Start ``work`` in a process of its own, silently; return its id."""
    sys.stdout.flush()
    if child := os.fork():
        return child
    code = 1
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        work()
        code = 0
    finally:
        os._exit(code)


def killed(work: Callable[[], object], seconds: float) -> bool:
    """Kill ``work`` after some seconds; return whether it was still at work."""
    child = forked(work)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def finished(work: Callable[[], object]) -> None:
    """Let ``work`` come to its end in a process of its own.

    Raises:
        RuntimeError: if it fails.
    """
    if os.waitstatus_to_exitcode(os.waitpid(forked(work), 0)[1]):
        raise RuntimeError("a process failed")


# -- training ------------------------------------------------------------------------------------------------------


def train(root: Path, output: Path, *, resume: bool) -> None:
    """Train in this process, as ``vireid train`` does."""
    from vireid.cli.app import vireid

    data = ["--dataset", "regdb", "--root", str(root), "--output", str(output), "--accelerator", "cpu"]
    vireid(["train", "cift", *data, *RUN, "--set", f"epochs={EPOCHS}", *["--resume"] * resume], standalone_mode=False)


def state_of(output: Path) -> tuple[dict[str, bytes], bytes, list[str]]:
    """Return the bits of the checkpoint's values, the metrics, and the names of the files; logs count as one."""
    values: dict[str, bytes] = {}

    def walk(name: str, x: Any) -> None:
        if isinstance(x, dict):
            for key, value in x.items():
                walk(f"{name}/{key}", value)
        elif isinstance(x, list | tuple):
            walk(name, dict(enumerate(x)))
        else:
            values[name] = x.numpy().tobytes() if isinstance(x, Tensor) else repr(x).encode()

    walk("", torch.load(output / "checkpoint.pt", weights_only=True))
    names = {path.relative_to(output).as_posix() for path in output.rglob("*")}
    names = {"logs/events" if "events.out" in name else name for name in names}
    return values, (output / "metrics.json").read_bytes(), sorted(names)


def kill_training(moments: int, rng: np.random.Generator, folder: Path) -> list[str]:
    """Kill and resume the training; return what differs from an uninterrupted run, by moment."""
    from vireid.data import generate_synthetic

    root = generate_synthetic(folder / "data", layout="regdb", identities=8, images_per_camera=2, size=(32, 16))
    finished(lambda: train(root, folder / "first", resume=False))  # what is made once per folder is made
    start = time.monotonic()
    finished(lambda: train(root, folder / "whole", resume=False))
    seconds = time.monotonic() - start
    wanted, faults, resumed = state_of(folder / "whole"), [], 0
    for moment in range(moments):
        output = folder / f"run{moment}"
        share = float(rng.random())
        killed(lambda output=output: train(root, output, resume=False), share * seconds)  # type: ignore[misc]
        resume = (output / "checkpoint.pt").exists()
        resumed += resume
        try:
            finished(lambda output=output, resume=resume: train(root, output, resume=resume))  # type: ignore[misc]
            found = state_of(output)
        except (RuntimeError, OSError, ValueError) as error:
            faults.append(f"moment {moment} ({share:.3f}): {error}")
            continue
        differing = [part for part, a, b in zip(("weights", "metrics", "files"), found, wanted, strict=True) if a != b]
        if differing:
            more = ", ".join(sorted({*found[2]} ^ {*wanted[2]}))
            faults.append(f"moment {moment} ({share:.3f}): other {' and '.join(differing)} than uninterrupted {more}")
    print(f"train: {moments} kills within {seconds:.1f} s, {resumed} after a checkpoint, {len(faults)} faults")
    return faults


# -- files ---------------------------------------------------------------------------------------------------------


def savers(folder: Path) -> Iterator[tuple[str, str, tuple[Callable[[Path], object], Callable[[Path], object]]]]:
    """Yield (what is saved, its ending, two functions that save different content)."""
    from lightning_fabric import Fabric

    from vireid.data import save_features, save_keypoints
    from vireid.neighbors import NeighborGraph
    from vireid.rerank import AIM
    from vireid.training.checkpoint import save_checkpoint

    rows = [torch.randn(2000, 64, generator=torch.Generator().manual_seed(i)) for i in (0, 1)]
    graphs = [NeighborGraph.build(x, 10) for x in rows]
    yield "graph", ".npz", (graphs[0].save, graphs[1].save)
    fitted = [AIM(k1=4, k2=2).fit(x) for x in rows]
    yield "re-ranker", ".npz", (fitted[0].save, fitted[1].save)
    n = np.arange(2000)

    def features(x: Tensor) -> Callable[[Path], object]:
        return lambda path: save_features(path, x, n % 50, n % 2, n % 6)

    yield "features, npz", ".npz", (features(rows[0]), features(rows[1]))
    with contextlib.suppress(ImportError):
        import safetensors  # noqa: F401

        yield "features, safetensors", ".safetensors", (features(rows[0]), features(rows[1]))

    def points(seed: int) -> Callable[[Path], object]:
        names, values = [f"{i}.jpg" for i in n], np.random.default_rng(seed).random((2000, 13, 3))
        return lambda path: save_keypoints(path, names, values, np.full((2000, 2), 16))

    yield "key points", ".npz", (points(0), points(1))
    fabric = Fabric(accelerator="cpu", devices=1)

    def checkpoint(x: Tensor) -> Callable[[Path], object]:
        return lambda path: save_checkpoint(fabric, path, {"model": {"x": x}, "epoch": 3})

    yield "checkpoint", ".pt", (checkpoint(rows[0]), checkpoint(rows[1]))


def kill_savers(moments: int, rng: np.random.Generator, folder: Path) -> list[str]:
    """Kill processes that save in turn two contents at one path; return what is not whole or left over."""
    faults = []
    for name, ending, (one, other) in savers(folder):
        place = folder / name
        place.mkdir()
        path = place / f"file{ending}"
        contents = []
        for save in (other, one):
            start = time.monotonic()
            save(path)
            seconds = time.monotonic() - start
            contents.append(path.read_bytes())
        midway = before = 0
        for moment in range(moments):
            saves = (one, other) if moment % 2 else (other, one)

            def work(saves: tuple[Callable[[Path], object], ...] = saves, path: Path = path) -> None:
                while True:
                    for save in saves:
                        save(path)

            if moment % 5 == 0:  # where there is no old file
                path.unlink()
            killed(work, float(rng.uniform(0.001, 0.004 + 4 * seconds)))
            found = path.read_bytes() if path.exists() else None
            before += found is None
            midway += sorted(place.iterdir()) != [path] * (found is not None)
            if found not in (*contents, *([None] if moment % 5 == 0 else ())):
                faults.append(f"{name}, moment {moment}: neither the old nor the new file")
            one(path)
            if path.read_bytes() != contents[1]:
                faults.append(f"{name}, moment {moment}: a further save wrote something else")
            if left := sorted(x.name for x in place.iterdir() if x != path):
                faults.append(f"{name}, moment {moment}: left over after a further save: {', '.join(left)}")
        print(f"{name}: {moments} kills, {midway} amid a file, {before} before the first was whole")
    return faults


def main(moments: int, seed: int) -> int:
    """Kill at as many moments of the training and of each saver; print the faults and return their number."""
    for name in ("kornia", "lightning_fabric", "matplotlib.figure", "matplotlib.backends.backend_agg", "tensorboard",
                 "torch.utils.tensorboard", "tqdm", "vireid.cli.app", "vireid.training", "vireid.plots"):  # fmt: skip
        importlib.import_module(name)  # once, before the forks
    torch.set_num_threads(1)
    rng = np.random.default_rng(seed)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        faults = kill_savers(moments, rng, Path(folder))
        faults += kill_training(moments, rng, Path(folder))
    print(*faults, f"{len(faults)} faults, {time.monotonic() - start:.0f} s", sep="\n")
    return len(faults)
