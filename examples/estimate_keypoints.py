"""Estimate the key points of all images of a data set, once, for train_g2da.py --keypoints FOLDER.

    python examples/estimate_keypoints.py --dataset sysu --root SYSU-MM01            # into SYSU-MM01-heatmaps
    python examples/estimate_keypoints.py --dataset regdb --root RegDB --model ./vitpose --output heatmaps/regdb
    python examples/train_g2da.py --dataset sysu --root SYSU-MM01 --keypoints SYSU-MM01-heatmaps

Needs pip install 'vireid[pose]'. Every image of SYSU-MM01, RegDB or LLCM in its published layout gets a file of its own
with the heatmaps of 13 key points (docs/key-points.md). The same command goes on where it was interrupted, and makes
again what is damaged, what belongs to an image that changed, and all of it for another model. The model is a name that
transformers downloads, or a folder with its config.json and model.safetensors, for a machine without network.
"""

import argparse
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from vireid import INFRARED, VISIBLE
from vireid.data import HeatmapFolder, LLCMDataset, RegDBDataset, SYSUMM01Dataset
from vireid.data.keypoints import heatmap_path
from vireid.data.pose import cache_heatmaps
from vireid.nn import PERSON_13


def parse_arguments() -> argparse.Namespace:
    """The options, checked as far as that costs nothing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=["sysu", "regdb", "llcm"], required=True)
    parser.add_argument("--root", type=Path, required=True, help="folder of the data set")
    parser.add_argument("--output", type=Path, help="folder for the heatmaps (default: beside --root, ROOT-heatmaps)")
    parser.add_argument(
        "--model", default="usyd-community/vitpose-base-simple", help="a ViTPose: name on the hub, or local folder"
    )
    parser.add_argument("--batch", type=int, default=64, help="images that the model is given at a time")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--score", type=float, default=0.3, help="at the end, count key points with a lower one")
    arguments = parser.parse_args()
    if not 0 <= arguments.score <= 1:
        parser.error(f"--score must lie between 0 and 1, got {arguments.score}")
    try:
        torch.empty(0, device=arguments.device)
    except (AssertionError, RuntimeError) as error:
        parser.error(f"--device must be one that this machine has, got {arguments.device!r}: {error}")
    root = arguments.root.resolve()
    arguments.output = arguments.output or root.with_name(f"{root.name}-heatmaps")
    return arguments


def find_images(dataset: str, root: Path) -> dict[Path, int]:
    """Every image of the data set, whatever split it belongs to, and its modality."""
    if dataset == "sysu":
        return images_of(SYSUMM01Dataset(root, "all"))
    if dataset == "llcm":
        return images_of(LLCMDataset(root, "all"))
    trials = [trial for trial in range(1, 11) if (root / "idx" / f"train_visible_{trial}.txt").is_file()]
    found: dict[Path, int] = {}
    for trial in trials or [1]:  # where there is no list, the reader says so
        found |= images_of(RegDBDataset(root, "all", trial=trial))
    return found


def images_of(data: SYSUMM01Dataset | RegDBDataset | LLCMDataset) -> dict[Path, int]:
    """The files of a dataset and their modality."""
    return dict(zip(data.paths, data.modality.tolist(), strict=True))


def state(file: Path) -> tuple[int, int] | None:
    """What tells a file from the one that replaces it; None if there is none."""
    try:
        found = file.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_ino, found.st_mtime_ns


def read_scores(folder: Path, paths: list[Path], root: Path) -> np.ndarray:
    """(N, 13) scores: the highest value of each heatmap, as a dataset will read them."""
    from tqdm import tqdm

    heatmaps = HeatmapFolder(folder, paths, root)
    with ThreadPoolExecutor() as pool:
        scores = pool.map(lambda row: heatmaps[row].amax((1, 2)).numpy(), range(len(paths)))
        return np.stack(list(tqdm(scores, total=len(paths), desc="scores", unit="image")))


def describe(scores: np.ndarray, modality: np.ndarray, least: float) -> str:
    """The share of key points with a score below ``least``, in all images and by modality, and the worst key point."""
    lines = [f"key points with a score (the highest value of the heatmap) below {least:g}:"]
    rows: Mapping[str, np.ndarray] = {
        "all": modality >= 0,
        "visible": modality == VISIBLE,
        "infrared": modality == INFRARED,
    }
    for name, chosen in rows.items():
        low = 100 * (scores[chosen] < least).mean(0)
        worst = int(low.argmax())
        lines.append(f"  {name:8} {low.mean():5.1f} %, most often {PERSON_13.names[worst]} ({low[worst]:.1f} %)")
    return "\n".join(lines)


def main() -> None:
    """Estimate as the command line says; a fault that a user can mend ends it in one sentence."""
    arguments = parse_arguments()
    root, output = arguments.root, arguments.output
    try:
        images = find_images(arguments.dataset, root)
        paths, modality = list(images), np.array(list(images.values()))
        counts = f"{(modality == VISIBLE).sum()} visible, {(modality == INFRARED).sum()} infrared"
        print(f"{root}: {len(paths)} images ({counts}); heatmaps go into {output}")
        files = [heatmap_path(output, path, root) for path in paths]
        before = [state(file) for file in files]
        cache_heatmaps(paths, output, root=root, model=arguments.model, batch=arguments.batch, device=arguments.device)
        scores = read_scores(output, paths, root)
    except (ImportError, OSError, ValueError) as error:
        raise SystemExit(f"estimate_keypoints.py: {error}") from error
    except KeyboardInterrupt:
        raise SystemExit(f"stopped: what was made stays in {output}, and the same command goes on from there") from None
    made = sum(state(file) != old for file, old in zip(files, before, strict=True))
    print(f"{output}: heatmaps of {len(paths)} images, {made} made now, {len(paths) - made} there already")
    print(describe(scores, modality, arguments.score))


if __name__ == "__main__":
    main()
