"""Hostile values: replacements of one argument, each with what may come of it."""

import decimal
import fractions
import inspect
import math
import warnings
from collections.abc import Callable, Collection, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.reliability.draw import Draw

# What may come of a replacement: it "may" be accepted, it must be "refused", or it must give the "same" result.
Hostile = tuple[str, Any, str]
NUMBERS: list[tuple[str, Any]] = [
    *(("True", True), ("np.True_", np.True_), ("'3'", "3"), ("nan", math.nan), ("inf", math.inf), ("-inf", -math.inf)),
    *(("np.nan", np.float32("nan")), ("complex", 3 + 0j), ("bytes", b"3"), ("list", [3]), ("dict", {}), ("None", None)),
    *(("tensor", torch.tensor([3.0, 1.0])), ("array", np.array([3])), ("decimal", decimal.Decimal(3))),
    *(("text", "ab\n"), ("object", object()), ("module", torch.nn.Identity()), ("function", len)),
    *(("-1", -1), ("0", 0), ("1.5", 1.5), ("10**30", 10**30), ("2**63", 2**63), ("1e300", 1e300), ("1e-300", 1e-300)),
    *(("-0.0", -0.0), ("-2**63", -(2**63)), ("fraction", fractions.Fraction(1, 3)), ("5e-324", 5e-324)),
]
REFUSED = ("True", "np.True_", "'3'", "nan", "np.nan", "inf", "-inf", "complex", "bytes", "list", "dict", "text",
           "object", "module", "function", "tensor", "array")  # fmt: skip
# A count of these asks for work or memory without end, which is given.
WORK = ("samples", "depth", "restarts", "iterations", "layers", "trials", "resamples", "epochs", "dim", "channels",
        "width", "num_classes", "parts", "rows", "columns", "nodes", "directions", "batches", "identities", "padding",
        "images_per_camera", "per_modality", "size", "grid", "batch_size", "workers", "total", "sigma")  # fmt: skip
HUGE = ("10**30", "2**63", "1e300")
FLOAT_ONLY = ("1.5", "1e300", "1e-300", "5e-324", "fraction")


# Infinities that a docstring allows.
INFINITE = ("threshold",)


def hostile_values(value: Any, parameter: inspect.Parameter) -> Iterator[Hostile]:
    """Yield what may stand in place of ``value``, or of the default of an argument that was not given."""
    annotation = str(parameter.annotation).replace("Optional", "None | ")
    if parameter.name == "device":
        return  # torch's own
    if "object" in annotation or "Any" in annotation.replace("numpy.ndarray[typing.Any, typing.Any]", ""):
        return  # anything at all
    if isinstance(value, Tensor | np.ndarray):
        yield from _hostile_arrays(value, parameter.name)
    elif isinstance(value, bool):
        yield ("np.bool_", np.bool_(value), "may")
    elif isinstance(value, int | float) or (value is None and ("int" in annotation or "float" in annotation)):
        whole = "int" in annotation if value is None else isinstance(value, int) and "float" not in annotation
        if isinstance(value, int):
            kinds = [kind for kind in (np.int64, np.int32, np.int8, np.uint8)
                     if np.iinfo(kind).min <= value <= np.iinfo(kind).max]  # fmt: skip
            yield from ((kind.__name__, kind(value), "same") for kind in kinds)
        if isinstance(value, float):
            yield ("np.float64", np.float64(value), "same")
        for name, other in NUMBERS:
            if (name == "None" and (value is None or "None" in annotation)) or (
                name in HUGE and parameter.name in WORK
            ):
                continue
            must = (
                (name in REFUSED and not (name.endswith("inf") and parameter.name in INFINITE))
                or name == "None"
                or (whole and name in FLOAT_ONLY)
            )
            if name in ("list", "dict", "'3'", "text") and any(x in annotation for x in ("Sequence", "Mapping", "str")):
                must = False
            yield (name, other, "refused" if must else "may")
    elif "Literal" in annotation and value is not None:
        for name, other in NUMBERS:
            if name != "None" or "None" not in annotation:
                yield (name, other, "may" if callable(other) and "Callable" in annotation else "refused")
    else:  # objects, sequences and names: Python's own TypeError of such a value says enough
        yield from ((name, other, "may") for name, other in NUMBERS if name != "None" or "None" not in annotation)


def _hostile_arrays(value: Tensor | np.ndarray, argument: str) -> Iterator[Hostile]:
    """Yield replacements of a tensor or an array."""
    x = torch.from_numpy(np.ascontiguousarray(value)) if isinstance(value, np.ndarray) else value.detach()
    for name, make, must in _ARRAYS:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of types that PyTorch gives up
                other = make(x.clone())
        except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError):
            continue  # there is none of this kind
        if other is None:
            continue
        if argument == "modality" and name in ("minus100", "plus1", "huge") and not np.isin(other, (0, 1)).all():
            must = "refused"
        if isinstance(value, np.ndarray) and isinstance(other, Tensor) and other.layout == torch.strided:
            plain = not (other.is_nested or other.is_meta or other.is_quantized or other.is_conj())
            if plain and other.dtype not in (torch.bfloat16, torch.float8_e5m2) and not other.requires_grad:
                other = other.numpy()
        yield (name, other, must)
    if isinstance(value, np.ndarray):
        for name, array, must in (
            ("readonly", _readonly(value), "same"), ("big-endian", value.astype(value.dtype.newbyteorder(">")), "same"),
            ("reversed", value[::-1].copy()[::-1], "same"), ("objects", value.astype(object), "refused"),
            ("longdouble", value.astype(np.longdouble), "may"), ("masked", np.ma.masked_array(value), "may"),
            ("strings", value.astype(str), "refused"), ("complex", value.astype(complex), "refused"),
            ("datetime", np.zeros(value.shape, "datetime64[s]"), "refused"),
        ):  # fmt: skip
            yield (name, array, must)


def _readonly(x: np.ndarray) -> np.ndarray:
    x = x.copy()
    x.flags.writeable = False
    return x


def _floats(make: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    return lambda x: make(x) if x.is_floating_point() else None


def _integers(make: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    return lambda x: make(x) if not x.is_floating_point() and x.dtype != torch.bool else None


def _with(value: float) -> Callable[[Tensor], Tensor | None]:
    """Return a maker that puts ``value`` in the first place, if the type can hold it."""

    def make(x: Tensor) -> Tensor | None:
        if not x.numel():
            return None
        x = x.contiguous()
        x.view(-1)[0] = value
        return x if math.isfinite(value) == math.isfinite(float(x.view(-1)[0])) else None

    return make


_ARRAYS: list[tuple[str, Callable[[Tensor], Any], str]] = [
    ("none", lambda x: 3, "refused"),
    ("text", lambda x: "abc", "refused"),
    ("dict", lambda x: {}, "refused"),
    ("function", lambda x: len, "refused"),
    ("list", lambda x: x.tolist(), "may"),
    ("complex", lambda x: x.to(torch.complex64), "refused"),
    ("float8", lambda x: x.to(torch.float8_e5m2), "refused"),
    ("sparse", lambda x: x.to_sparse(), "refused"),
    ("csr", lambda x: x.to_sparse_csr(), "refused"),
    ("meta", lambda x: x.to("meta"), "may"),
    ("nested", lambda x: torch.nested.nested_tensor(list(x)), "refused"),
    ("quantized", _floats(lambda x: torch.quantize_per_tensor(x.float(), 0.1, 0, torch.qint8)), "refused"),
    ("axis", lambda x: x[None], "may"),
    ("no axis", lambda x: x[0] if len(x) else None, "may"),
    ("scalar", lambda x: x.flatten()[0] if x.numel() else None, "may"),
    ("shorter", lambda x: x[:-1] if len(x) else None, "may"),
    ("longer", lambda x: torch.cat([x, x[:1]]) if len(x) else None, "may"),
    ("wider", lambda x: torch.cat([x, x[..., :1]], -1) if x.ndim > 1 else None, "may"),
    ("no rows", lambda x: x[:0], "may"),
    ("no columns", lambda x: x[..., :0] if x.ndim > 1 else None, "may"),
    ("zeros", lambda x: torch.zeros_like(x), "may"),
    ("equal rows", lambda x: x[:1].expand_as(x) if len(x) else None, "may"),
    ("grad", _floats(lambda x: x.requires_grad_()), "same"),
    ("parameter", _floats(lambda x: torch.nn.Parameter(x)), "same"),
    ("integers", _floats(lambda x: x.long()), "may"),
    ("bool", lambda x: x.bool() if x.dtype != torch.bool else None, "may"),
    ("nan", _floats(_with(math.nan)), "may"),
    ("inf", _floats(_with(math.inf)), "may"),
    ("denormal", _floats(lambda x: x * 1e-42), "may"),
    ("1e-30", _floats(lambda x: x * 1e-30), "may"),
    ("1e15", _floats(lambda x: x * 1e15), "may"),
    ("1e25", _floats(lambda x: x * 1e25), "may"),
    ("1e37", _floats(lambda x: x * 1e37), "may"),
    ("one 1e38", _floats(_with(1e38)), "may"),
    ("one 6e4", _floats(_with(6e4)), "may"),
    ("floats", _integers(lambda x: x.float()), "refused"),
    ("halves", _integers(lambda x: x + 0.5), "refused"),
    ("int32", _integers(lambda x: x.int()), "same"),
    ("int8", _integers(lambda x: x.to(torch.int8) if x.numel() and int(x.max()) < 100 else None), "same"),
    ("uint8", _integers(lambda x: x.to(torch.uint8) if x.numel() and 0 <= int(x.min()) else None), "same"),
    ("minus100", _integers(_with(-100)), "may"),
    ("plus1", _integers(lambda x: x + 1 if x.numel() else None), "may"),
    ("huge", _integers(_with(2**62)), "may"),
]
EXTREME = {name for name, _, _ in _ARRAYS if name[:1] in "1o" or name == "denormal"} - {"one 6e4"}


def mutate(
    draw: Draw, function: Callable[..., Any], given: dict[str, Any], free: Collection[str] = ()
) -> tuple[str, Hostile | None]:
    """Return a random argument of ``function`` and a hostile value for it; None if all are ``free``."""
    values: dict[str, list[Hostile]] = {}
    for p in inspect.signature(function).parameters.values():
        if p.name not in ("self", *free) and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY):
            values[p.name] = list(hostile_values(given.get(p.name, p.default), p))
    names = [name for name, found in values.items() if found]
    if not names:
        return "", None
    name = draw.option(*names)
    return name, draw.option(*values[name])
