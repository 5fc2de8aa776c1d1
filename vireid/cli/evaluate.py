"""``vireid evaluate``: a feature file or a checkpoint, ranked by a data set's protocol."""

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vireid import INFRARED, VISIBLE
from vireid.cli import options
from vireid.cli.options import FOLDER, Data, DatasetName, InputFile, OutputFile, Rules, refuse
from vireid.cli.rerankers import Reranking, rerank_options

if TYPE_CHECKING:  # imported where they are used: the help needs no torch
    from vireid.protocols import LLCM, SYSUMM01, RegDB, Report

__all__ = ["evaluate"]

_USES = """\
uses: data that a ranking depends on besides the query: query = none, gallery =
all of the gallery, transductive = other queries too, unknown = not stated"""


def _check_name(context: click.Context, option: click.Parameter, value: str | None) -> str | None:
    if value is not None and not value.isprintable():
        raise click.BadParameter("it must be text without control characters.", context, option)
    return value


_EXAMPLES = """\b
Examples:
  vireid evaluate features.npz --protocol regdb --json report.json
  vireid evaluate trial1.npz trial2.npz trial3.npz --protocol regdb --name CIFT
  vireid evaluate features.npz --protocol llcm --direction infrared_to_visible
  vireid evaluate features.npz --protocol sysu --permutations exp/rand_perm_cam.mat
  vireid evaluate features.npz --protocol SYSU-MM01 --mode indoor --shots 10 --sampling agw
  vireid evaluate features.npz --protocol regdb --rerank aim
  vireid evaluate features.npz --protocol regdb --rerank k_reciprocal --lambda-value 0.1
  vireid evaluate checkpoint.pt --root RegDB --output evaluation
  vireid evaluate checkpoint.pt --dataset llcm --root LLCM --rerank gnn

\b
AIM's k1 and k2, unless given, are the paper's: 4 and 1 for SYSU-MM01 single-shot,
20 and 6 multi-shot, 8 and 2 for RegDB and (our choice) LLCM.
"""


@click.command(short_help="Evaluate feature files or a checkpoint by a data set's protocol.", epilog=_EXAMPLES)
@click.argument("files", nargs=-1, required=True, type=InputFile())
@click.option("--protocol", type=DatasetName(["sysu", "regdb", "llcm"]), help="Feature files: whose rules apply.")
@options.protocol_options
@click.option("--permutations", type=InputFile(), help="Feature files: SYSU-MM01's exp/rand_perm_cam.mat.")
@rerank_options(text="[none; for a checkpoint as its recipe says, of SAAI aim]")
@click.option("--name", callback=_check_name, help="Feature files: their name in the report. Default: the first one's.")
@options.data_options("test", "all")
@click.option("--flip/--no-flip", default=None, help="Checkpoint: mean over an image and its mirror image [recipe's].")
@click.option("--output", type=FOLDER, help="Checkpoint: also write metrics.json, cmc.png and ranked.png there.")
@click.option("--json", "json_file", type=OutputFile(".json"), help="Also write the report with every trial.")
@click.option("--csv", "csv_file", type=OutputFile(".csv"), help="Also write one line per row.")
@click.option("--latex", is_flag=True, help="Print rows of a LaTeX table instead.")
@options.progress_option
def evaluate(
    files: tuple[Path, ...],
    protocol: str | None,
    permutations: Path | None,
    name: str | None,
    rules: Rules,
    reranking: Reranking,
    data: Data,
    flip: bool | None,
    output: Path | None,
    json_file: Path | None,
    csv_file: Path | None,
    latex: bool,
    progress: bool | None,
) -> None:
    """Evaluate FILES by a data set's protocol: CMC, mAP and mINP as in print.

    FILES are feature files (.npz, .safetensors), or one checkpoint.pt. A feature file holds all test images of both
    modalities; who is query, who is gallery and what is skipped is the protocol's. Features are compared by cosine
    distance, with --rerank by a re-ranking. SYSU-MM01 and LLCM draw their galleries by image numbers: the array
    image_numbers, or else the names, of which SYSU-MM01 takes the number at the end (cam1/0005/0001.jpg) and LLCM the
    sorted order. RegDB's ten trials are ten models: give the ten files, they become one row per direction. Otherwise
    it is one file.

    A checkpoint is evaluated on the test images that it was trained for, or on those of --dataset, in all the ways in
    which its model ranks.

    In the table, "uses" says which data a ranking depends on besides the query: query (none), gallery, or transductive
    (other queries too). Compare rows of one kind only.
    """
    outputs = [path for path in (json_file, csv_file) if path is not None]
    write: Callable[[Path], None] | None = None
    if files[0].suffix == ".pt":
        refuse("", "a checkpoint, whose data set says it", {"protocol": protocol, "permutations": permutations})
        refuse("", "a checkpoint", {"name": name})
        if len(files) > 1:
            raise click.UsageError(f"a checkpoint is evaluated by itself, got {len(files)} files.")
        from vireid.cli.trained import open_trained
        from vireid.training.checkpoint import trained_on

        found = open_trained(files[0], data, rules)
        click.echo(f"{files[0]}: {found.method}, epoch {found.epoch}, trained on {trained_on(found.settings)}")
        reports, write = found.evaluate(data, rules, reranking, flip=flip, progress=progress)
    else:
        used = {"split": None if data.split == "test" else data.split, "workers": data.workers or None, "device": None}
        refuse("", "feature files", vars(data) | used | {"flip": flip, "output": output})
        reports = {}
        for table, each in rules.each().items():
            protocols = _protocols(files, protocol, permutations, each)
            chosen = reranking.completed(protocol, each.shots)
            reports[table] = _features(files, protocols, chosen, name or files[0].stem, outputs, data.device, progress)
    try:  # the table first: a full disk must not lose the figures, nor a reader that has left the files
        shown = "\n".join(report.to_latex() if latex else str(report) for report in reports.values())
        click.echo(shown if latex else f"{shown}\n{_USES}")
    finally:
        for path, (table, report) in itertools.product(outputs, reports.items()):
            report.save(path.with_stem(f"{path.stem}_{table}") if table else path)
        if write is not None and output is not None:
            write(output)


def _protocols(
    files: tuple[Path, ...], protocol: str | None, permutations: Path | None, rules: Rules
) -> "list[SYSUMM01 | RegDB | LLCM]":
    """Return the protocols that feature files are evaluated by."""
    if protocol is None:
        raise click.UsageError("Missing option '--protocol', the data set whose rules apply to feature files.")
    rules.check("--protocol", protocol)
    if protocol != "sysu":
        refuse("--protocol", protocol, {"permutations": permutations})
    elif rules.sampling == "agw":
        refuse("--sampling", "agw", {"permutations": permutations})
    elif permutations is None:
        raise click.UsageError(
            "--sampling official needs --permutations, the data set's exp/rand_perm_cam.mat; without it there is "
            "--sampling agw, which is not what the official code reports."
        )
    if len({file.resolve() for file in files}) < len(files):
        raise click.UsageError("a file was given twice: each is one trial.")
    if len(files) > 1 and protocol != "regdb":
        raise click.UsageError(f"--protocol {protocol} takes one file, got {len(files)}.")
    return rules.protocols(protocol, permutations)


def _features(
    files: tuple[Path, ...],
    protocols: "list[SYSUMM01 | RegDB | LLCM]",
    reranking: Reranking,
    name: str,
    outputs: list[Path],
    device: str,
    progress: bool | None,
) -> "Report":
    """Evaluate feature files."""
    import numpy as np
    import torch

    from vireid.protocols import Report

    reports, counts = [], []
    with options.bar(len(files) * sum(each.trials for each in protocols), "trials", progress) as shown:
        how: dict[str, Any] = {"rerank": reranking.function(shown.update), "features_name": name}
        for file in files:
            found = options.read_features(file, *outputs)
            counts.append(np.bincount(found.modality, minlength=2).tolist())
            x: Any = torch.from_numpy(found.features).to(device)
            found = dataclasses.replace(found, features=x)
            for each in protocols:
                try:
                    reports.append(each.evaluate(found, modality=found.modality, **how))
                except ValueError as error:
                    taken = found.image_numbers is None and "image_numbers must" in str(error)
                    hint = "; the file has no image_numbers, they were taken from its names" if taken else ""
                    raise ValueError(f"{file}: {error}{hint}") from error
    if any(count != counts[0] for count in counts):
        sizes = ", ".join(f"{file} {c[VISIBLE]} and {c[INFRARED]}" for file, c in zip(files, counts, strict=True))
        click.echo(f"Note: the files hold different numbers of visible and infrared images: {sizes}", err=True)
    return Report.merge(reports)
