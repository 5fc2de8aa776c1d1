"""``vireid train``: a method of a paper trained on a data set and evaluated by its protocol."""

import ast
import dataclasses
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from vireid.cli.options import FOLDER, Data, Rules, data_options, protocol_options
from vireid.cli.signatures import constant, keys, keyword_arguments, option, parse

if TYPE_CHECKING:  # imported where they are used: the help needs no torch
    from vireid.training import Recipe

__all__ = ["train"]

_FIXED = ("name", "settings")  # fields of a recipe that --set does not change
_RECIPE = "How it is trained: as a paper prints it, or small, for two CPU cores."
_EXAMPLES = {
    "cift": """
  vireid train cift
  vireid train cift --dataset regdb --root RegDB --trial 3 --ablation baseline
  vireid train cift --recipe cift --dataset sysu --root SYSU-MM01 --mode both --shots both
  vireid train cift --recipe cift --dataset regdb --root RegDB --set lr=0.05 --precision 16-mixed""",
    "saai": """
  vireid train saai
  vireid train saai --part-diversity 0 --center-separation 0 --output runs/id
  vireid train saai --recipe saai --dataset regdb --root RegDB
  vireid train saai --dataset llcm --root LLCM --set schedule=steps --set milestones=1/2,3/4""",
    "g2da": """
  vireid train g2da
  vireid train g2da --ablation ot --phi 0 --output runs/gw
  vireid train g2da --dataset regdb --root RegDB --part-grid 4 3
  vireid train g2da --recipe g2da --dataset sysu --root SYSU-MM01 --keypoints SYSU-MM01-heatmaps""",
    "agw": """
  vireid train agw
  vireid train agw --ablation hct --transfer h2ft --output runs/hct-cift
  vireid train agw --recipe agw --dataset sysu --root SYSU-MM01""",
}


@click.group()
def train() -> None:
    """Train a method of a paper and evaluate it.

    Into --output go checkpoint.pt (whole, after each epoch), TensorBoard logs, metrics.json, cmc.png and ranked.png.
    """


def _fields() -> dict[str, str]:
    """Return a text as --set takes it, such as "size=64,32", of each field of a recipe with its default."""
    (recipe,) = (node for node in parse("training/recipe.py").body if isinstance(node, ast.ClassDef))
    texts = {}
    for node in recipe.body:
        if isinstance(node, ast.AnnAssign) and node.value and (name := ast.unparse(node.target)) not in _FIXED:
            value = ast.unparse(node.value).strip("()'").replace(" ", "").lower()
            texts[name] = f"{name}={'PART:SHARE,…' if value.startswith('field') else value}"
    return texts


def changed(recipe: "Recipe", changes: Sequence[str]) -> "Recipe":
    """Return a recipe with other values, each written as "field=value".

    Raises:
        click.UsageError: for an unknown field or a value that it does not take.
    """
    kinds = {field.name: _kind(field.type) for field in dataclasses.fields(recipe) if field.name not in _FIXED}
    values = {}
    for change in changes:
        name, _, text = change.partition("=")
        if name not in kinds:
            raise click.UsageError(f"--set takes FIELD=VALUE with a field of {', '.join(kinds)}, got {change!r}.")
        try:
            values[name] = _value(kinds[name], text)
        except (ValueError, KeyError, ZeroDivisionError):
            raise click.UsageError(f"--set takes values such as {_fields()[name]}, got {change!r}.") from None
    try:
        return recipe.replace(**values)
    except (ValueError, TypeError) as error:
        raise click.UsageError(f"--set: {error}.") from error


def _kind(annotation: Any) -> str:
    """Return the type of a field as a text."""
    return annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")


def _value(kind: str, text: str) -> Any:
    """Return a value of a type, given by its name."""
    if "None" in kind and text == "none":
        return None
    if "Literal" in kind or kind == "str":
        return text
    if "Mapping" in kind:
        shares = (item.rpartition(":") for item in text.split(",") if item)
        return {part: float(Fraction(share)) for part, _, share in shares}
    if "tuple" in kind:
        return tuple(_value("int" if "int" in kind else "float", item) for item in text.split(","))
    if "bool" in kind:
        return {"true": True, "false": False}[text]
    return int(text) if "int" in kind else float(Fraction(text))


def _add(method: str) -> None:
    """Add the command of a method, with an option for each of its settings."""
    file = f"training/methods/{method}.py"
    arguments = keyword_arguments(file, f"{method.upper()}Settings")

    def run(**given: Any) -> None:
        _train(method, **given)

    what = "AGW, HC or HCT" if method == "agw" else f"{method.upper()} or a row of its ablation"
    run.__doc__ = f"""Train {what}, and evaluate it.

    A --recipe other than small also replaces defaults of the options after --resume. --set changes a field of the
    recipe, and may be repeated. The fields, with the values of the recipe small: {", ".join(_fields().values())}.
    """
    recipes = keys("training/recipes.py", "RECIPES")
    common = [
        data_options(),
        protocol_options,
        click.option("--recipe", "recipe_name", type=click.Choice(recipes), default="small", help=_RECIPE),
        click.option("--set", "changes", multiple=True, metavar="FIELD=VALUE", help="As in lr=0.05; see above."),
        click.option("--precision", help="Lightning Fabric's: 32-true [default], bf16-mixed, 16-mixed and others."),
        click.option("--cache/--no-cache", default=True, help="Keep the images in memory."),
        click.option("--accelerator", default="auto", help="Lightning Fabric's: cpu, cuda, mps."),
        click.option("--devices", type=click.IntRange(min=1), default=1, help="Number of processes."),
        click.option("--output", type=FOLDER, default=Path("runs", method)),
        click.option("--resume", is_flag=True, help="Go on from the checkpoint in --output."),
    ]
    rows = constant(file, f"{method.upper()}_ROWS")
    own = [option(argument, rows if argument.name == "ablation" else None) for argument in arguments.values()]
    command: Any = run
    for decorate in reversed([*common, *own]):
        command = decorate(command)
    train.command(method, short_help=f"Train {what}.", epilog=f"\b\nExamples:{_EXAMPLES[method]}\n")(command)


def _train(
    method: str,
    *,
    data: Data,
    rules: Rules,
    recipe_name: str,
    changes: tuple[str, ...],
    precision: str | None,
    cache: bool,
    accelerator: str,
    devices: int,
    output: Path,
    resume: bool,
    **settings: Any,
) -> None:
    """Train by the recipe and evaluate; only the first process of several does the latter.

    Of the method's settings, those given on the command line stand before the recipe's.
    """
    from vireid.cli.rerankers import Reranking
    from vireid.cli.trained import Trained, keypoints_of, root_of
    from vireid.training import build, fit, launch, open_dataset, recipe_of, settings_of
    from vireid.training.datasets import digest_keypoints

    changes = changes if precision is None else (*changes, f"precision={precision}")
    recipe = changed(recipe_of(method, recipe_name), changes)
    source = click.get_current_context().get_parameter_source
    given = {name: value for name, value in settings.items() if source(name) is not ParameterSource.DEFAULT}
    settings = settings_of(method, recipe) | given
    dataset = data.dataset or "synthetic"
    rules.check("--dataset", dataset)
    root, keypoints = root_of(dataset, data), keypoints_of(method, settings, dataset, data)
    trial = data.trial or 1
    where: dict[str, Any] = {"root": root, "size": recipe.size, "trial": trial, "keypoints": keypoints}

    fabric = launch(recipe, output=output, accelerator=accelerator, devices=devices)
    with fabric.rank_zero_first():  # the first process draws synthetic data, the others find them there
        images = open_dataset(dataset, "train", cache=cache, preload=data.workers > 0, **where)
        test = open_dataset(dataset, "test", cache=False, **where)  # what is missing of it is named now
    for each in rules.each().values():
        each.protocols(dataset, root / "exp" / "rand_perm_cam.mat")
    kept = {"method": method, "dataset": dataset, "trial": trial}
    kept |= {name: value for name, value in settings.items() if value is not None}
    if keypoints is not None:
        kept["keypoints"] = digest_keypoints(keypoints)
    model, criterion = build(method, images.num_classes, recipe.size, settings)
    run: dict[str, Any] = {"recipe": recipe, "fabric": fabric, "output": output, "resume": resume, "settings": kept}
    model = fit(model, criterion, images, workers=data.workers, **run)
    if fabric.is_global_zero:
        trained = Trained(model, method, kept, recipe, recipe.epochs, dataset, test)
        reports, write = trained.evaluate(data, rules, Reranking())
        click.echo("\n".join(map(str, reports.values())))
        write(output)


for _method in ("cift", "saai", "g2da", "agw"):
    _add(_method)
