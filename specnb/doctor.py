"""Is everything here, unaltered and working? Versions, device, data, one short speculative run.

`python -m specnb.doctor` exits 1 with the reasons in words when something is wrong;
`python -m specnb.doctor --write-sums` renews data/SHA256SUMS from the files as they are.
"""

import importlib.metadata
import os
import platform
import sys
import time
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

from specnb import arguments, paths
from specnb.files import sha256_of
from specnb.paths import DATA, ROOT

# Only `make lab` and specnb.batch need them.
NOT_ON_COLAB = {"jupyterlab", "papermill", "nbconvert", "nbformat", "latex2mathml"}

DESCRIPTION = "Is everything here, unaltered and working? Exits 1 with the reasons otherwise."


class CheckFailed(Exception):
    """What is wrong and what to do about it."""


def floors() -> tuple[str, list[str]]:
    """Which Python and which packages are needed, as written: without those of extras."""
    if paths.is_checkout():
        text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
        project = tomllib.loads(text)["project"]
        return project["requires-python"], project["dependencies"]
    metadata = importlib.metadata.metadata("specnb")
    needed = metadata.get_all("Requires-Dist", [])
    return metadata["Requires-Python"], [line for line in needed if "extra ==" not in line]


def versions() -> Iterator[str]:
    """Python and the packages, held against the floors in pyproject.toml or of the wheel."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    python, requirements = floors()
    yield f"python {platform.python_version()} on {platform.platform()}"
    if platform.python_version() not in SpecifierSet(python):
        raise CheckFailed(f"Python {platform.python_version()}: {python} is needed")
    wrong = []
    for requirement in map(Requirement, requirements):
        name, needed = requirement.name, requirement.specifier
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield f"{name} is missing"
            if name not in NOT_ON_COLAB:
                wrong.append(f"{name} is not installed: pip install '{requirement}'")
            continue
        yield f"{name} {version}"
        if not needed.contains(version, prereleases=True):
            wrong.append(f"{name} {version} is not {needed}: pip install '{requirement}'")
    if wrong:
        raise CheckFailed("; ".join(wrong))


def machine() -> Iterator[str]:
    """Device, and which threads and number format are fastest; `specnb.setup` goes by that."""
    import torch

    from specnb.models import calibration, settings

    if torch.cuda.is_available():
        yield f"device cuda: {torch.cuda.get_device_name()}"
    else:
        yield f"device cpu ({torch.backends.cpu.get_cpu_capability()})"
    policy = os.environ.get("OMP_WAIT_POLICY", "unset")
    yield f"OMP_WAIT_POLICY {policy}, {calibration.cores()} cores to use"
    found = calibration.calibrate(calibration.cores())  # what is remembered stays
    for key, (one, block) in found.ms.items():
        yield f"threads and format {key}: one token {one:.2f} ms, six tokens {block:.2f} ms"
    ways = {"speculative": (found.threads, found.dtype), "plain": found.plain}
    for way, (threads, dtype) in ways.items():
        words = f"{settings.words(dtype)}, {threads} thread{'s' if threads > 1 else ''}"
        yield f"fastest for {way} decoding: {words}"


def hashes(data: Path = DATA) -> Iterator[str]:
    """Every file named in SHA256SUMS is there and unaltered."""
    sums = data / "SHA256SUMS"
    if not sums.is_file():
        raise CheckFailed(f"{sums} is missing: restore it, or write it with --write-sums")
    wrong, listed = [], sums.read_text(encoding="utf-8").splitlines()
    for line in listed:
        expected, _, name = line.partition("  ")
        if not (data / name).is_file():
            wrong.append(f"data/{name} is missing")
        elif sha256_of(data / name) != expected:
            wrong.append(f"data/{name} differs from its sum in SHA256SUMS")
    yield f"data: {len(listed) - len(wrong)} of {len(listed)} files as published"
    if wrong:
        raise CheckFailed("; ".join(wrong) + f": {_remedy()}")


def _remedy() -> str:
    return "restore with git checkout -- data" if paths.is_checkout() else "install specnb again"


def write_sums(data: Path = DATA) -> int:
    """Writes SHA256SUMS over the published files and returns their number.

    Stored results are left out: nothing is computed from them, and every measurement renews them.
    """
    apart = {data / "README.md", data / "SHA256SUMS"}
    files = [path for path in sorted(data.rglob("*")) if path.is_file() and path not in apart]
    files = [path for path in files if path.parent != data / "results"]
    files = [path for path in files if not path.name.startswith(".") and path.suffix != ".tmp"]
    lines = [f"{sha256_of(path)}  {path.relative_to(data).as_posix()}\n" for path in files]
    (data / "SHA256SUMS").write_text("".join(lines), encoding="utf-8", newline="\n")
    return len(files)


def decoding() -> Iterator[str]:
    """The embedded pair decodes greedily what its target alone decodes, token for token."""
    import specnb as sn

    pair = sn.load_pair(dtype="float32")  # rounding may turn a near tie
    picture = sn.scenes.examples("caption", 1, seed=0)[0].image
    prompt, limit = "Describe the picture.", 48
    start_s = time.perf_counter()
    run = sn.speculative(
        pair, prompt, image=picture, drafter=sn.Chain(5), max_new_tokens=limit, seed=0
    )
    took_s = time.perf_counter() - start_s
    base = sn.autoregressive(pair.target, prompt, image=picture, max_new_tokens=limit)
    yield f"{run.text!r}"
    yield f"{len(run.token_ids)} tokens in {took_s:.1f} s"
    yield f"block efficiency {run.metrics.block_efficiency:.2f} tokens per target call"
    ours, theirs = list(run.token_ids), list(base.token_ids)
    if ours != theirs:
        pairs = enumerate(zip(ours, theirs, strict=False))
        first = next((at for at, (a, b) in pairs if a != b), min(len(ours), len(theirs)))
        raise CheckFailed(f"speculative decoding leaves the target's own text at token {first}")


def main(argv: Sequence[str] | None = None, prog: str = "python -m specnb.doctor") -> int:
    """Prints every check; 0 when all is well, 1 otherwise."""
    parser = arguments.Parser(prog=prog, description=DESCRIPTION)
    parser.add_argument("--write-sums", action="store_true", help="renew data/SHA256SUMS")
    if parser.parse_args(argv).write_sums:
        try:
            paths.need_checkout("--write-sums")
        except ValueError as error:
            parser.error(str(error))
        print(f"{write_sums()} files in data/SHA256SUMS")
        return 0
    try:
        paths.need_share()
    except ValueError as reason:  # nothing else can be well then
        print(f"wrong: {reason}", file=sys.stderr)
        return 1
    reasons = []
    for check in (versions, machine, hashes, decoding):
        try:
            for line in check():
                print(line)
        except CheckFailed as reason:
            reasons.append(str(reason))
        except Exception as error:  # a doctor that crashes has found something, too
            reasons.append(f"{check.__name__}: {type(error).__name__}: {error}")
    for reason in reasons:
        print(f"wrong: {reason}", file=sys.stderr)
    print("something is wrong" if reasons else "all is well")
    return int(bool(reasons))


if __name__ == "__main__":
    sys.exit(main())
