"""How many threads, and which number format: measured once on the machine at hand."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from specnb.arguments import whole

GAMMA = 5  # a block of this many drafts is what the choice is made for
ROUNDS = 10
SECONDS = 1.0  # a machine that is busy or slow gets fewer rounds
MOST_ROWS = 64  # in one forward
GAIN = 0.95  # another format and a second thread must save at least 5 %
VERSION = 2  # of what is measured; what an older one has left in the user's cache is not read
SHAPE = {"layers": 8, "width": 384, "heads": 6, "mlp": 1024, "vocab": 1000}  # as the embedded one


class Choice(NamedTuple):
    """What runs fastest here: `ms` maps "threads dtype" to [one token, GAMMA + 1 tokens].

    `threads` and `dtype` are those of speculative decoding, `plain` those of plain decoding.
    """

    threads: int
    dtype: str
    ms: dict[str, list[float]]

    @property
    def plain(self) -> tuple[int, str]:
        """The (threads, dtype) whose single token takes least."""
        return fastest(self._times(), 0)

    def threads_for(self, dtype: str) -> int:
        """How many are fastest for speculative decoding in one format; "auto" is the fastest's."""
        own = {key: times for key, times in self._times().items() if key[1] == dtype}
        return fastest(own)[0] if own else self.threads

    def _times(self) -> dict[tuple[int, str], list[float]]:
        return {_key(name): times for name, times in self.ms.items()}


def cores() -> int:
    """OMP_NUM_THREADS, else what the process may use: affinity and the container's quota."""
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    if asked.isdecimal() and int(asked) > 0:
        return int(asked)
    found = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        found = len(os.sched_getaffinity(0))
    quota = Path("/sys/fs/cgroup/cpu.max")  # a container on a large machine may hold two cores
    if quota.is_file():
        allowed, _, period = quota.read_text(encoding="ascii").strip().partition(" ")
        if allowed.isdecimal():
            found = min(found, math.ceil(int(allowed) / int(period)))
    return max(1, found)


def choice(fresh: bool = False) -> Choice:
    """The calibration of this machine, from the user's cache where it has been made before.

    `fresh` measures anew. A worker that may use fewer cores has a calibration of its own.
    """
    import platformdirs
    import torch

    most = cores()
    name = f"{platform.processor() or platform.machine()} {processor()} "
    name += f"torch {torch.__version__} {most}"
    name += f" v{VERSION}"
    path = Path(platformdirs.user_cache_dir("specnb")) / "machine.json"
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        known = known if isinstance(known, dict) else {}
    except (OSError, ValueError):
        known = {}
    if fresh or name not in known:
        known[name] = calibrate(most)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(f".{os.getpid()}")
            part.write_text(json.dumps(known, indent=1), encoding="utf-8")
            os.replace(part, path)  # another process reads either the old file or the new one
        except OSError:  # a home that cannot be written to: measured again next time
            pass
    return Choice(*known[name])


def calibrate(most_threads: int) -> Choice:
    """Times one token and a block in each format, with one thread and with two; under 2 seconds.

    A model of the embedded target's shape with random weights runs on the lean runtime. Interleaved
    medians; the first candidate, one thread with float32, wins ties. bfloat16 takes part also where
    its instructions are missing: a block is slow then, but a single token reads half as much.
    """
    threads = sorted({1, min(2, most_threads)})
    keys = [(n, name) for n in threads for name in _formats()]
    took = _in_turns(keys, (1, GAMMA + 1), SECONDS)
    ms = {key: [took[(*key, size)] for size in (1, GAMMA + 1)] for key in keys}
    return Choice(*fastest(ms), {f"{n} {name}": values for (n, name), values in ms.items()})


def row_costs(
    rows: Sequence[int] = (1, 2, 3, 4, 6, 8, 12, 16), seconds: float = 4.0
) -> dict[str, list[float]]:
    """Milliseconds that one target forward of so many tokens takes here, by number format.

    As in `calibrate`, and with the threads that a run has now: a model of the embedded target's
    shape, formats and sizes in turns, medians. What verification costs beside a plain step (v of
    `theory.walltime_improvement`) is a format's time for draft length + 1 rows over that for one.
    ValueError where a number of rows is not from 1 to 64.
    """
    import torch

    rows = tuple(whole("rows", number, 1, MOST_ROWS) for number in rows)
    threads = torch.get_num_threads()
    keys = [(threads, name) for name in _formats()]
    took = _in_turns(keys, rows, seconds)
    return {name: [took[threads, name, size] for size in rows] for _, name in keys}


def _formats() -> list[str]:
    from specnb.models.llama import has_halves

    return ["float32", "bfloat16"] + (["float16"] if has_halves() else [])


def _in_turns(
    keys: Sequence[tuple[int, str]], sizes: Sequence[int], seconds: float
) -> dict[tuple[int, str, int], float]:
    """Median milliseconds by (threads, format, rows); at most `ROUNDS` rounds or so many seconds.

    The threads of torch are as before afterwards.
    """
    import torch

    before = torch.get_num_threads()
    runs = {name: _random_model(name) for _, name in keys}
    times: dict[tuple, list] = {(*key, size): [] for key in keys for size in sizes}
    end = time.perf_counter() + seconds
    try:
        for _ in range(ROUNDS):
            for threads, name in keys:
                torch.set_num_threads(threads)
                for size in sizes:
                    began = time.perf_counter()
                    runs[name](size)
                    times[threads, name, size].append(time.perf_counter() - began)
            if time.perf_counter() > end:
                break
    finally:
        torch.set_num_threads(before)
    return {  # the first of each is warm-up
        key: 1e3 * statistics.median(values[1:] or values) for key, values in times.items()
    }


def fastest(ms: dict[tuple[int, str], list[float]], size: int = 1) -> tuple[int, str]:
    """The (threads, dtype) whose block takes least, or with `size` 0 whose single token does.

    A later one must be clearly faster.
    """
    best = next(iter(ms))
    for key in ms:
        if ms[key][size] < GAIN * ms[best][size]:
            best = key
    return best


def _key(name: str) -> tuple[int, str]:
    threads, _, dtype = name.partition(" ")
    return int(threads), dtype


def _random_model(name: str) -> Callable[[int], object]:
    import torch

    from specnb.models.llama import Llama, Shape, Weights

    halves = name == "float16"
    kind = torch.float32 if halves else getattr(torch, name)
    width, heads, mlp = SHAPE["width"], SHAPE["heads"], SHAPE["mlp"]
    dim = width // heads
    generator = torch.Generator().manual_seed(0)

    def weight(rows: int, columns: int):
        return (0.05 * torch.rand(rows, columns, generator=generator)).to(kind)

    sizes = ((3 * width, width), (width, width), (2 * mlp, width), (width, mlp))
    layers = [tuple(weight(*size) for size in sizes) for _ in range(SHAPE["layers"])]
    table = weight(SHAPE["vocab"], width)
    inv_freq = 1e4 ** -(torch.arange(0, dim, 2) / dim)
    shape = Shape(heads, heads, dim, 1e-6)
    llama = Llama(Weights(shape, table, layers, table, inv_freq, halves=halves))
    length = 128
    cache = llama.empty_cache(length + MOST_ROWS).zero_()

    def run(size: int):
        x = llama.embed([1] * size)
        return llama.forward(x, range(length, length + size), cache, length)

    return run


def processor() -> str:
    """The processor's name, "" where it is not told; part of keys, so any stable text will do."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "")
