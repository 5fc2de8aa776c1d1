"""The command ``vireid``, its subcommands, and how their errors are shown."""

from typing import Any

import click

from vireid import __version__
from vireid.cli.draw import draw
from vireid.cli.evaluate import evaluate
from vireid.cli.extract import extract
from vireid.cli.info import info
from vireid.cli.keypoints import keypoints
from vireid.cli.rerank import rerank
from vireid.cli.train import train

__all__ = ["vireid"]


class _Group(click.Group):
    """A group whose commands end with one line on standard error and exit code 1 if data are bad."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # the reader of our output has left: click ends quietly
        except (ValueError, ImportError, OSError, FloatingPointError, MemoryError, RuntimeError) as error:
            text = " ".join(str(error).split())
            memory = any(words in text.lower() for words in ("out of memory", "can't allocate memory"))
            if isinstance(error, RuntimeError) and not memory:
                raise  # a mistake of ours
            raise click.ClickException(text or "out of memory") from error


_EXAMPLES = """\b
  vireid train cift --dataset regdb --root RegDB --output runs/cift
  vireid evaluate runs/cift/checkpoint.pt --root RegDB
  vireid extract runs/cift/checkpoint.pt --root RegDB --output features.npz
  vireid evaluate features.npz --protocol regdb --rerank aim
  vireid COMMAND --help
"""


@click.group(
    cls=_Group,
    epilog=_EXAMPLES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100, "show_default": True},
)
@click.version_option(__version__, message="%(version)s")
def vireid() -> None:
    """Visible-infrared person re-identification: train, extract features, evaluate, re-rank, draw.

    Features of any code base can be evaluated and re-ranked: a feature file, .npz or .safetensors, holds the arrays
    features (N, d), ids, cameras, modality (0 visible, 1 infrared) and, if wanted, names and image_numbers.
    numpy.savez writes one, and so does vireid.data.save_features.
    """


for _command in (train, extract, evaluate, rerank, draw, keypoints, info):
    vireid.add_command(_command)
