"""``vireid evaluate``: a feature file ranked by a data set's protocol."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vireid import INFRARED, VISIBLE
from vireid.cli.options import (
    METHODS,
    METHODS_HELP,
    OutputFile,
    bar,
    check_device,
    check_method,
    check_owner,
    common_options,
    read_features,
    rerank_options,
)
from vireid.protocols.names import DIRECTIONS

if TYPE_CHECKING:  # imported where they are used: the help needs no torch
    from vireid.data.features import Features
    from vireid.protocols.report import Report

__all__ = ["evaluate"]

_USES = "uses: what a query's ranking looks at beyond itself: query = nothing, gallery = all of the gallery, "
_USES += "transductive = other queries too, unknown = not stated"


def _check_name(context: click.Context, option: click.Parameter, value: str | None) -> str | None:
    if value is not None and not value.isprintable():
        raise click.BadParameter("it must be text without control characters.", context, option)
    return value


_EXAMPLES = """\b
Examples:
  vireid evaluate features.npz --protocol regdb --json report.json
  vireid evaluate trial1.npz trial2.npz trial3.npz --protocol regdb --name CIFT
  vireid evaluate features.npz --protocol llcm --direction infrared_to_visible
  vireid evaluate features.npz --protocol sysu-mm01 --permutations exp/rand_perm_cam.mat
  vireid evaluate features.npz --protocol sysu-mm01 --mode indoor --shots 10 --sampling agw
  vireid evaluate features.npz --protocol regdb --rerank aim --k1 8 --k2 2
  vireid evaluate features.npz --protocol regdb --rerank k_reciprocal --lambda-value 0.1

\b
AIM's k1 and k2 in the paper: 4 and 1 for SYSU-MM01 single-shot, 20 and 6 multi-shot, 8 and 2 for RegDB.
"""


@click.command(short_help="Evaluate a feature file by a data set's protocol.", epilog=_EXAMPLES)
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--protocol", type=click.Choice(["sysu-mm01", "regdb", "llcm"]), required=True, help="Data set whose rules apply."
)
@click.option("--mode", type=click.Choice(["all", "indoor"]), help="SYSU-MM01: all-search [default] or indoor-search.")
@click.option("--shots", type=click.Choice(["1", "10"]), help="SYSU-MM01: single-shot [default] or multi-shot.")
@click.option(
    "--sampling",
    type=click.Choice(["official", "agw"]),
    help="SYSU-MM01: the published galleries [default], or the AGW family's. They differ: do not mix them.",
)
@click.option(
    "--permutations",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="SYSU-MM01: the data set's exp/rand_perm_cam.mat, for --sampling official.",
)
@click.option("--direction", type=click.Choice([*DIRECTIONS, "both"]), help="RegDB, LLCM: query to gallery [both].")
@click.option("--rerank", type=click.Choice(["none", *METHODS]), default="none", show_default=True, help=METHODS_HELP)
@rerank_options
@click.option("--name", callback=_check_name, help="Name of the features in the report. Default: the (first) file's.")
@click.option("--json", "json_file", type=OutputFile(".json"), help="Also write the report with every trial.")
@click.option("--csv", "csv_file", type=OutputFile(".csv"), help="Also write one line a row.")
@click.option("--latex", is_flag=True, help="Print rows of a LaTeX table instead.")
@common_options
def evaluate(
    files: tuple[Path, ...],
    protocol: str,
    mode: str | None,
    shots: str | None,
    sampling: str | None,
    permutations: Path | None,
    direction: str | None,
    rerank: str,
    name: str | None,
    json_file: Path | None,
    csv_file: Path | None,
    latex: bool,
    device: str,
    progress: bool | None,
    **options: Any,
) -> None:
    """Evaluate feature FILES by a data set's protocol: CMC, mAP and mINP as in print.

    A file holds all test images of both modalities; who is query, who is gallery and what is skipped is the
    protocol's. Features are compared by cosine distance, with --rerank by a re-ranking. SYSU-MM01 and LLCM draw their
    galleries by image numbers: the array image_numbers, or else the names, of which SYSU-MM01 takes the number at the
    end (cam1/0005/0001.jpg) and LLCM the sorted order.

    RegDB's ten trials are ten models: give the ten files, they become one row a direction. Else it is one file.

    The table's column "uses" says what a query's ranking looks at beyond itself: query (nothing), gallery, or
    transductive (other queries too). Compare rows of one kind only.
    """
    given = check_method("--rerank", rerank, options)
    if protocol == "sysu-mm01":
        check_owner("--protocol", protocol, {"direction": direction})
        if (sampling or "official") == "official" and permutations is None:
            raise click.UsageError(
                "--sampling official needs --permutations, the data set's exp/rand_perm_cam.mat; without it there is "
                "--sampling agw, which is not what the official code reports."
            )
        if sampling == "agw":
            check_owner("--sampling", "agw", {"permutations": permutations})
    else:
        sysu = {"mode": mode, "shots": shots, "sampling": sampling, "permutations": permutations}
        check_owner("--protocol", protocol, sysu)
    if len({file.resolve() for file in files}) < len(files):
        raise click.UsageError("a file was given twice: each is one trial.")
    if len(files) > 1 and protocol != "regdb":
        raise click.UsageError(f"--protocol {protocol} takes one file, got {len(files)}.")
    check_device(device)

    import numpy as np

    from vireid.protocols.report import Report

    protocols = _protocols(protocol, mode, shots, sampling, permutations, direction)
    trials = sum(getattr(rules, "trials", 1) for rules in protocols)
    reports, counts = [], []
    with bar(len(files) * trials, "trials", progress) as shown:
        ranked = _Counted(rerank, given, shown.update)
        for file in files:
            found = read_features(file, json_file, csv_file)
            counts.append(np.bincount(found.modality, minlength=2).tolist())
            for rules in protocols:
                try:
                    reports.append(_evaluated(rules, found, device, rerank=ranked, features_name=name or files[0].stem))
                except ValueError as error:
                    taken = found.image_numbers is None and "image_numbers must" in str(error)
                    hint = "; the file has no image_numbers, they were taken from its names" if taken else ""
                    raise ValueError(f"{file}: {error}{hint}") from error
    if any(count != counts[0] for count in counts):
        sizes = ", ".join(f"{file} {c[VISIBLE]} and {c[INFRARED]}" for file, c in zip(files, counts, strict=True))
        click.echo(f"Note: the files hold different numbers of visible and infrared images: {sizes}", err=True)
    report = Report.merge(reports)
    try:  # the table first: a full disk must not lose the figures, nor a reader that has left the files
        click.echo(report.to_latex() if latex else f"{report}\n{_USES}")
    finally:
        for output in (json_file, csv_file):
            if output is not None:
                report.save(output)


def _protocols(
    protocol: str, mode: Any, shots: str | None, sampling: Any, permutations: Path | None, direction: str | None
) -> list[Any]:
    """The protocol with its settings, for each direction."""
    from vireid.protocols import LLCM, SYSUMM01, RegDB

    if protocol == "sysu-mm01":
        return [SYSUMM01(mode or "all", int(shots or 1), sampling or "official", permutations=permutations)]
    ways: Any = DIRECTIONS if direction in (None, "both") else (direction,)
    return [RegDB(way) if protocol == "regdb" else LLCM(way) for way in ways]


def _evaluated(rules: Any, found: "Features", device: str, **options: Any) -> "Report":
    """The report of a feature file, ranked on ``device``."""
    import torch

    numbers = None if rules.name == "RegDB" else found.places() if rules.name == "LLCM" else found.numbers()
    x = torch.from_numpy(found.features).to(device)
    report: Report = rules.evaluate(x, found.ids, found.modality, found.cameras, numbers, **options)
    return report


class _Counted:
    """A re-ranking whose calls move a bar; a report reads its name, ``uses`` and settings as those of the method."""

    def __init__(self, method: str, options: dict[str, Any], step: Callable[[], Any]) -> None:
        from vireid import rerank
        from vireid.protocols._protocol import compare

        self._step = step
        self.__name__, self.uses, self.settings = method, "query", options
        self._function = functools.partial(compare, rerank=None)
        if method != "none":
            function = getattr(rerank, method)
            self.uses, self.settings = function.uses, METHODS[method].options | options
            self._function = functools.partial(function, **options)

    def __call__(self, query: Any, gallery: Any) -> Any:
        distance = self._function(query, gallery)
        self._step()
        return distance
