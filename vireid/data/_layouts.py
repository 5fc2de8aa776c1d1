"""Folders, lists and images of the published layouts, as real systems leave them.

`ImageDataset` documents the rules: what an image and a list may be, and which files are passed over.
"""

import codecs
import os
import re
import warnings
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor

from vireid._checks import extra

MAX_PIXELS = 2**26  # of an image that is decoded: 192 MiB in RGB
_FORMATS = ("JPEG", "PNG", "BMP")  # of the data sets; others start decoders and programs that nobody asked for
_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp")
_LIST_BYTES = 2**26  # of a list: a thousand times the published ones
# Of Windows, macOS, Synology, QNAP and Linux, in lower case; names that begin with a dot are passed over too.
_LEFT_BEHIND = {
    *("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "$recycle.bin", "system volume information"),
    *("__macosx", "icon\r", "@eadir", "#recycle", "@recycle", "lost+found"),
}


def check_folder(path: Path) -> None:
    """Raise unless there is a folder at ``path``."""
    if not path.is_dir():
        raise FileNotFoundError(f"folder {path} does not exist")


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return the entries of a folder, sorted by name, without those of operating systems."""
    check_folder(folder)
    with os.scandir(folder) as found:
        kept = [x for x in found if not (x.name.startswith(".") or x.name.lower() in _LEFT_BEHIND)]
    return sorted(kept, key=lambda entry: entry.name)


def image_files(folder: Path, passed: list[Path]) -> list[Path]:
    """Return the images of a folder, sorted by name; whatever else it holds is added to ``passed``."""
    images: list[Path] = []
    for entry in _entries(folder):
        # A link to nothing is an image that is missing: reading it says so.
        is_image = entry.name.lower().endswith(_ENDINGS) and (entry.is_file() or not os.path.exists(entry.path))
        (images if is_image else passed).append(folder / entry.name)
    return images


def numbered_folders(
    folder: Path, passed: list[Path], pattern: str = "([0-9]{4})", named: str = "by a four-digit identity"
) -> list[tuple[int, Path]]:
    """Return the folders in ``folder``, each with the number in its name; files of other names go to ``passed``."""
    found = []
    for entry in _entries(folder):
        match, path = re.fullmatch(pattern, entry.name), folder / entry.name
        if match and entry.is_dir():
            found.append((int(match[1]), path))
        elif match or entry.is_dir():
            raise ValueError(f"{path} must be a folder named {named}")
        else:
            passed.append(path)
    return found


def warn_of_passed_over(root: Path, passed: list[Path]) -> None:
    """Warn once of all files that were passed over, if there are any."""
    if passed:
        first = ", ".join(repr(str(path.relative_to(root))) for path in passed[:3])
        found = f"{len(passed)} entries that are no images of the data set, first {first}"
        warnings.warn(f"{root} holds {found}; they are passed over", stacklevel=3)  # at the call of the dataset


def _read_text(path: Path) -> str:
    """Return the text of a list, with line feeds only and without what Windows puts at its beginning and end."""
    if not path.is_file():
        raise FileNotFoundError(f"file {path} does not exist")
    if (size := path.stat().st_size) > _LIST_BYTES:
        raise ValueError(f"{path} must be a list of at most {_LIST_BYTES} bytes, got {size}")
    data = path.read_bytes()
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if utf16 else "utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file in UTF-8, or in UTF-16 with a byte order mark") from error
    text = text.replace("\ufeff", "").rstrip("\0\x1a \t\r\n")  # marks inside too: of lists that were joined
    if "\0" in text:
        raise ValueError(f"{path} is not a text file, it holds zero bytes")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _is_number(text: str) -> bool:
    return len(text) <= 18 and text.isascii() and text.isdigit()  # within int64


def read_identities(path: Path) -> set[int]:
    """Return the identities of a list of SYSU-MM01 or LLCM: one line, comma-separated."""
    entries = [entry.strip() for entry in _read_text(path).strip().split(",")]
    if entries == [""]:
        raise ValueError(f"{path} is empty, expected comma-separated identities")
    for entry in entries:
        if not _is_number(entry):
            raise ValueError(f"{path} must hold comma-separated identities, got {entry[:40]!r}")
    identities = set(map(int, entries))
    if len(identities) < len(entries):
        raise ValueError(f"{path} lists an identity twice")
    return identities


def read_index(index: Path, root: Path, folder: str, labels: dict[int, int]) -> list[tuple[Path, int]]:
    """Return (path, identity) of each line of a list of RegDB or LLCM; a label stands for one identity.

    ``labels`` are those of the identities in lists that must agree with this one, and gains its own.
    """
    entries = []
    for number, line in enumerate(_read_text(index).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{index}, line {number}"
        listed, *rest = (part.strip() for part in line.strip().rsplit(None, 1))  # in linear time
        if not rest or not _is_number(rest[0]):
            raise ValueError(f"{where}: expected 'path label', got {line[:80]!r}")
        label = int(rest[0])
        parts = PurePosixPath(listed.replace("\\", "/")).parts  # lists that Windows wrote
        if len(parts) != 3 or parts[0] != folder or not _is_number(parts[1]) or parts[2] == ".." or ":" in listed:
            expected = f"{folder}/<identity number>/<file>, relative to {root} and inside it"
            raise ValueError(f"{where}: expected {expected}, got {listed[:80]!r}")
        path, identity = root.joinpath(*parts), int(parts[1])
        try:
            there = path.is_file()
        except OSError as error:  # a name too long for the system
            raise ValueError(f"{where}: cannot look for {listed[:80]!r}: {error.strerror}") from error
        if not there:
            raise FileNotFoundError(f"{where}: file {path} does not exist")
        if labels.setdefault(identity, label) != label:
            raise ValueError(f"{where}: identity {identity} has the labels {labels[identity]} and {label}")
        entries.append((path, identity))
    if not entries:
        raise ValueError(f"{index} is empty, expected lines 'path label'")
    if len(set(labels.values())) < len(labels):
        raise ValueError(f"{index} gives one label to several identities")
    return entries


def decode_image(path: Path, size: tuple[int, int] | None, max_pixels: int) -> Tensor:
    """Decode an image, (3, H, W) uint8 RGB, resized if ``size`` is given; its header is checked before that."""
    with extra("train", "reading images needs Pillow"):
        from PIL import Image, UnidentifiedImageError
    try:
        with Image.open(path, formats=_FORMATS) as opened:
            if opened.width * opened.height > max_pixels:
                raise ValueError(f"expected at most {max_pixels} pixels, got {opened.width} × {opened.height}")
            if opened.mode.startswith(("I", "F")):  # convert("RGB") would cut such values off at 255
                raise ValueError(f"expected 8 bits per channel, got mode {opened.mode}")
            opened.load()
            opened.info.pop("transparency", None)  # of palettes, of which `convert` would warn
            image = opened.convert("RGB")
    except UnidentifiedImageError as error:
        raise ValueError(f"cannot read image {path}: expected a whole file in {', '.join(_FORMATS)}") from error
    except Exception as error:  # damaged files raise errors of many kinds, and so do Pillow's own limits
        raise ValueError(f"cannot read image {path}: {error}") from error
    if size is not None:
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
