"""Measurements: `python -m specnb.bench SUBJECT [--json FILE]`; see `--help`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

KEPT = Path("runs/bench")  # rows of measurements that may be stopped and go on
# Settings under which torch, oneDNN, numpy's OpenBLAS and FBGEMM use AVX2 on a larger processor.
AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell",
    "FBGEMM_ENABLE_INSTRUCTIONS": "AVX2",
}


def runs_as(model: Any) -> str:
    """In which number format a model runs, and on how many threads, as RESULTS says it."""
    import torch

    threads = torch.get_num_threads()
    dtype = str(getattr(model, "dtype", "")).removeprefix("torch.")
    return ", ".join(filter(None, [dtype, f"{threads} thread{'s' if threads > 1 else ''}"]))


@contextmanager
def running_as(dtype: str, threads: int) -> Iterator[None]:
    """Models are loaded in this number format on a CPU, and run on so many threads; behind it all
    is as it was."""
    import torch

    from specnb.models import settings

    before = settings.dtype(), torch.get_num_threads()
    settings.set_dtype(dtype)
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        settings.set_dtype(before[0])
        torch.set_num_threads(before[1])
