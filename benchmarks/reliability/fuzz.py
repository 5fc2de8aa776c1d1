"""Call every public callable with random arguments, valid and hostile, in processes that may crash or hang.

A call is told by the seed and its number: ``python -m benchmarks.reliability fuzz --seed 0 --only 1234`` repeats it.
"""

import collections
import copy
import dataclasses
import math
import multiprocessing
import re
import resource
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.reliability._files import make_world
from benchmarks.reliability.calls import CALLS
from benchmarks.reliability.draw import DTYPES, LAYOUTS, Draw
from benchmarks.reliability.hostile import EXTREME, Hostile, mutate

LIMIT_SECONDS = 30.0
MEMORY = 12 * 2**30


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Outcome of a call.

    Attributes:
        number: of the call, with the seed.
        name: of the callable.
        what: the argument that was replaced, and by what; "" for a valid call.
        kind: "ok", "refused" (with an error that names the argument), or a fault's kind.
        text: the error, or the difference.
    """

    number: int
    name: str
    what: str
    kind: str
    text: str = ""


FAULTS = ("crash", "hang", "valid refused", "error unnamed", "let through", "not the same", "changed input",
          "kind of result", "oracle", "difference", "extreme difference")  # fmt: skip


def leaves(x: Any, depth: int = 0) -> Iterator[Any]:
    """Yield the tensors, arrays, numbers and texts of a result."""
    if isinstance(x, Tensor | np.ndarray | np.generic | int | float | str | bytes) or x is None:
        yield x
    elif isinstance(x, dict):
        for key, value in x.items():
            yield str(key)
            yield from leaves(value, depth + 1)
    elif isinstance(x, tuple | list):
        for value in x:
            yield from leaves(value, depth + 1)
    elif isinstance(x, Path):
        yield "path"
    elif isinstance(x, torch.nn.Module):
        yield type(x).__name__
        yield from (value for value in x.state_dict().values() if isinstance(value, Tensor))
    elif hasattr(x, "to_dict") and depth < 3:
        yield from leaves(x.to_dict(), depth + 1)
    elif hasattr(x, "to_arrays") and depth < 3:
        yield from leaves(x.to_arrays(), depth + 1)
    elif dataclasses.is_dataclass(x) and depth < 3:
        for field in dataclasses.fields(x):
            if field.compare and not field.name.startswith("_"):
                yield from leaves(getattr(x, field.name), depth + 1)
    else:
        yield type(x).__name__


def number_of(x: Any) -> Tensor | None:
    """Return a leaf as float64, None for texts and None."""
    if isinstance(x, Tensor):
        return (
            None if x.is_meta else x.detach().to_dense().double() if x.layout != torch.strided else x.detach().double()
        )
    if isinstance(x, np.ndarray):
        return torch.from_numpy(x.astype(np.float64)) if x.dtype.kind in "fiub" else None
    return torch.tensor(float(x), dtype=torch.float64) if isinstance(x, int | float | np.number) else None


def differ(one: Any, other: Any, tolerance: float, *, reals_only: bool = False) -> float:
    """Return the largest relative difference of two results, inf where one is finite or their forms differ."""
    a, b = list(leaves(one)), list(leaves(other))
    if len(a) != len(b):
        return math.inf
    worst = 0.0
    for x, y in zip(a, b, strict=True):
        if reals_only and not _real(x):
            continue  # places, which differ between neighbors that are as near
        p, q = number_of(x), number_of(y)
        if p is None or q is None:
            if isinstance(x, str) and isinstance(y, str) and x != y:
                return math.inf
            continue
        if p.shape != q.shape:
            return math.inf
        if not p.numel():
            continue
        same = (p == q) | (p.isnan() & q.isnan())
        if (p.isfinite() != q.isfinite()).any():
            return math.inf
        d = torch.where(same, 0.0, (p - q).abs())
        scale = torch.where(q.isfinite(), q.abs(), 0.0).amax().clamp_min(1e-3)
        found = float((d / scale).amax())
        worst = max(worst, math.inf if math.isnan(found) else found)
    return worst


def _real(x: Any) -> bool:
    if isinstance(x, Tensor):
        return x.is_floating_point()
    return (isinstance(x, np.ndarray) and x.dtype.kind == "f") or isinstance(x, float | np.floating)


def named(error: BaseException, argument: str, function: Any, given: dict[str, Any]) -> bool:
    """Return whether the error names the argument that was replaced, or, for tensors, any argument."""
    text = str(error)
    # an argument of another size is as often named by the one that it no longer fits
    known = [argument]
    if isinstance(given.get(argument), Tensor | np.ndarray):
        known += [*given, *(x for x in given.values() if isinstance(x, str))]  # a layer is told the name of an argument
    if isinstance(given.get(argument), Path | str) and isinstance(error, OSError):
        return True  # an OSError names the file
    return any(re.search(rf"(?<![a-zA-Z_]){re.escape(name)}(?![a-zA-Z])", text) for name in known)


class Runner:
    """Runs calls by their number."""

    def __init__(self, seed: int, world: Path, names: Sequence[str]) -> None:
        self.seed, self.world = seed, world
        self.calls = [CALLS[name] for name in names]
        weights = np.array([call.weight for call in self.calls])
        self.shares = weights / weights.sum()

    def plan(self, number: int) -> tuple[Any, dict[str, Any], Hostile | None, str]:
        """Return call ``number``: the callable, how its arguments are drawn, and which is replaced by what."""
        rng = np.random.default_rng([self.seed, number])
        call = self.calls[int(rng.choice(len(self.calls), p=self.shares))]
        scales = (1.0, 1.0, 1.0, 1e-3, 1e3)
        options = {
            "dtype": DTYPES[int(rng.choice(4, p=(0.5, 0.2, 0.15, 0.15)))],
            "layout": LAYOUTS[rng.integers(len(LAYOUTS))],
            "numpy": bool(rng.integers(2)),
            "scale": scales[rng.integers(len(scales))],
        }
        if rng.random() < 0.3:
            return call, options, None, ""
        torch.manual_seed(number)
        function, given = call.make(self.draw(number, options), self.world)
        argument, hostile = mutate(self.draw(number, options), function, given, call.free)
        return call, options, hostile, argument

    def draw(self, number: int, options: dict[str, Any], *, exact: bool = False) -> Any:
        """Return the call's draw, each time from its start."""
        return Draw(np.random.default_rng([self.seed, number, 1]), **options, exact=exact)

    def outcome(self, number: int) -> Outcome:
        """Make call ``number``, valid or with one hostile argument, and judge what comes of it."""
        call, options, hostile, argument = self.plan(number)
        name, what, must, change = call.name, "", "may", {}
        if hostile:
            label, value, must = hostile
            what, change = f"{argument}={label}", {argument: value}
        function, given = call.make(self.draw(number, options), self.world)
        run = lambda changed, exact=False: self.run(call, number, options, changed, exact=exact)
        try:
            result, touched = run(change)
        except BaseException as error:  # judged here, whatever it is
            kind, text = "refused", f"{type(error).__name__}: {str(error)[:300]}"
            if isinstance(error, MemoryError | KeyboardInterrupt | SystemExit):
                return Outcome(number, name, what, "error unnamed", text)
            if isinstance(error, ImportError):
                return Outcome(number, name, what, "refused", text)  # of an extra
            if not change:
                return Outcome(number, name, what, "valid refused", text + _where(error))
            documented = (TypeError, ValueError, FileNotFoundError, IsADirectoryError, NotADirectoryError, ImportError)
            value = given.get(argument)
            plain = isinstance(value, Tensor | np.ndarray | int | float)
            if call.holder:
                pass
            elif must == "same":
                kind = "not the same"
            elif not plain and must == "may" and isinstance(error, TypeError):
                pass
            elif not isinstance(error, documented) or not named(error, argument, function, given):
                kind, text = "error unnamed", text + _where(error)
            return Outcome(number, name, what, kind, text)
        if touched:
            return Outcome(number, name, what, "changed input", touched)
        if must == "refused" and not call.holder:
            return Outcome(number, name, what, "let through", f"gave {_short(result)}")
        if must == "same":
            d = differ(result, run({})[0], 0)
            if d > (1e-6 if options["dtype"].itemsize > 2 else 1e-2):  # another layout is summed in another order
                return Outcome(number, name, what, "not the same", f"differs by {d:.3g}")
            return Outcome(number, name, what, "ok")
        numpy_given = [x for x in given.values() if isinstance(x, np.ndarray | Tensor)]
        if not change and numpy_given and isinstance(numpy_given[0], np.ndarray) and options["numpy"]:
            wrong = [x for x in leaves(result) if isinstance(x, Tensor)]
            if wrong and not name.endswith((".gallery", ".query")) and "Sampler" not in name:
                return Outcome(number, name, what, "kind of result", "a tensor for NumPy arrays")
        if not change and (d := differ(result, run({})[0], 0)) > 0:
            return Outcome(number, name, what, "not the same", f"a second call differs by {d:.3g}")
        extreme = what.partition("=")[2] in EXTREME
        inside = not change or (extreme and (call.any_size or (what.endswith("=1e15") and options["scale"] <= 1)))
        if call.comparable and options["dtype"] == torch.float32 and inside:
            return self.compare(run, Outcome(number, name, what, "ok"), change, result, call.tolerance, extreme)
        return Outcome(number, name, what, "ok")

    def compare(self, run: Any, outcome: Outcome, change: dict[str, Any], result: Any, tolerance: float,
                extreme: bool) -> Outcome:  # fmt: skip
        """Compare a result in float32 with that of the same values in float64."""
        doubled = {key: _doubled(x) for key, x in change.items()}
        try:
            exact, _ = run(doubled, exact=True)
        except (ValueError, TypeError, RuntimeError) as error:
            kind = "extreme difference" if extreme else "difference"
            return dataclasses.replace(outcome, kind=kind, text=f"float64 is refused: {error}"[:300])
        if (d := differ(result, exact, tolerance, reals_only=True)) <= tolerance:
            return outcome
        if not extreme and math.isfinite(d):
            # a choice, such as of neighbors, may hang on the last bit: then float64 hangs on it as well
            for epsilon in (1e-6, 2e-6, 3e-6, 1e-5, 1e-4):  # cosines of nearly parallel rows hardly move
                moved, _ = run(doubled, exact=epsilon)
                if differ(moved, exact, tolerance, reals_only=True) > 0.1 * d:
                    return outcome
        finite = all(p.isfinite().all() for x in leaves(exact) if (p := number_of(x)) is not None)
        if extreme and (not finite or any(float(p.abs().max()) > 3e38 for x in leaves(exact)
                                          if (p := number_of(x)) is not None and p.numel())):  # fmt: skip
            return outcome  # not a number of float32
        kind = "extreme difference" if extreme else "difference"
        return dataclasses.replace(outcome, kind=kind, text=f"{d:.3g} from float64")

    def run(self, call: Any, number: int, options: dict[str, Any], change: dict[str, Any], *,
            exact: bool | float = False) -> tuple[Any, str]:  # fmt: skip
        """Make a call from its start; return its result and which input it changed."""
        torch.manual_seed(number)
        function, given = call.make(self.draw(number, options, exact=bool(exact)), self.world)
        given = {**given, **change}
        if exact is not True and exact:
            rng = np.random.default_rng([number, round(1e6 * exact)])  # another direction for each
            given = {key: _moved(x, rng, float(exact)) for key, x in given.items()}
        kept = {key: _kept(x) for key, x in given.items() if isinstance(x, Tensor | np.ndarray)}
        torch.manual_seed(number + 1)
        result = function(**given)
        touched = [key for key, x in kept.items() if x is not None and differ(given[key], x, 0) > 0]
        return result, ", ".join(touched)


def _kept(x: Any) -> Any:
    try:
        return copy.deepcopy(x.detach() if isinstance(x, Tensor) else x)
    except (RuntimeError, NotImplementedError):
        return None


def _doubled(x: Any) -> Any:
    if isinstance(x, Tensor) and x.is_floating_point():
        return x.double()
    return x.astype(np.float64) if isinstance(x, np.ndarray) and x.dtype.kind == "f" else x


def _moved(x: Any, rng: np.random.Generator, epsilon: float) -> Any:
    if isinstance(x, Tensor) and x.is_floating_point():
        return x * (1 + epsilon * torch.from_numpy(rng.normal(size=tuple(x.shape))))
    return x * (1 + epsilon * rng.normal(size=x.shape)) if isinstance(x, np.ndarray) and x.dtype.kind == "f" else x


def _short(result: Any) -> str:
    return " ".join(repr(result).split())[:120]


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "/vireid/" in f.filename]
    return f" [{Path(own[-1].filename).name}:{own[-1].lineno}]" if own else ""


def work(seed: int, world: Path, names: Sequence[str], numbers: Sequence[int], connection: Connection) -> None:
    """Make calls one after the other; send the number of each before it is made and what came of it after."""
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")
    runner = Runner(seed, world, names)
    connection.send(None)
    for number in numbers:
        connection.send(number)
        try:
            outcome = runner.outcome(number)
        except Exception as error:  # an oracle's own
            outcome = Outcome(number, "", "", "oracle", f"{type(error).__name__}: {error}"[:300] + _where(error))
        connection.send(outcome)
    connection.close()


class Worker:
    """A process with its share of the calls, started anew after a crash or a hang."""

    def __init__(self, seed: int, world: Path, names: Sequence[str], numbers: Sequence[int]) -> None:
        self.arguments, self.left = (seed, world, names), list(numbers)
        self.start()

    def start(self) -> None:
        """Start a process with the calls that are left."""
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe(duplex=False)
        self.process = context.Process(target=work, args=(*self.arguments, self.left, other), daemon=True)
        self.process.start()
        other.close()
        self.since, self.current = time.monotonic() + 60, None  # the imports take a while

    def read(self) -> Outcome | None:
        """Return what came of a call, if this message says so."""
        self.since = time.monotonic()
        try:
            message = self.connection.recv()
        except EOFError:
            self.process.join()
            return self.replace("crash", f"exit code {self.process.exitcode}") if self.left else None
        if isinstance(message, Outcome):
            self.left.remove(message.number)
            return message
        self.current = message
        return None

    def replace(self, kind: str, text: str) -> Outcome:
        """Leave the present call out and go on in a new process."""
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        if self.current is None:
            raise RuntimeError(f"a process ended before its first call: {text}")
        number = self.current
        self.left.remove(number)
        if self.left:
            self.start()
        call, _, hostile, argument = Runner(*self.arguments).plan(number)
        return Outcome(number, call.name, f"{argument}={hostile[0]}" if hostile else "", kind, text)


def fuzz(numbers: Sequence[int], seed: int, names: Sequence[str], processes: int) -> Iterator[Outcome]:
    """Make the calls in processes of their own; yield what came of each."""
    with tempfile.TemporaryDirectory() as folder:
        world = Path(folder) / "world"
        make_world(world)
        workers = [Worker(seed, world, names, numbers[i::processes]) for i in range(processes) if numbers[i::processes]]
        while any(worker.left for worker in workers):
            busy = [worker for worker in workers if worker.left]
            for connection in wait([worker.connection for worker in busy], timeout=1.0):
                worker = next(w for w in busy if w.connection is connection)
                if outcome := worker.read():
                    yield outcome
            for worker in busy:
                if worker.left and time.monotonic() - worker.since > LIMIT_SECONDS:
                    yield worker.replace("hang", f"more than {LIMIT_SECONDS:.0f} s")


def table(outcomes: Sequence[Outcome], seconds: float) -> str:
    """Return the count of each kind, as the lines of a table."""
    counts = collections.Counter(outcome.kind for outcome in outcomes)
    named = {"calls": len(outcomes), "answered": counts["ok"], "errors that name the argument": counts["refused"]}
    rows = {**named, **{kind: counts[kind] for kind in FAULTS}, "seconds": round(seconds)}
    return "\n".join(f"{name:32}{value:8}" for name, value in rows.items())


def main(calls: int, seed: int, only: Sequence[int], pattern: str, processes: int) -> int:
    """Make the calls, print the table and the faults, and return the number of faults."""
    names = sorted(name for name in CALLS if re.search(pattern, name))
    start = time.monotonic()
    outcomes = []
    for outcome in fuzz(list(only) or list(range(calls)), seed, names, processes):
        outcomes.append(outcome)
        if outcome.kind in FAULTS:
            print(f"{outcome.kind}: {outcome.name}({outcome.what}), call {outcome.number}: {outcome.text}", flush=True)
    print(table(outcomes, time.monotonic() - start))
    return sum(outcome.kind in FAULTS for outcome in outcomes)
