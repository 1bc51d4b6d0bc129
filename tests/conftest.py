"""Settings of every test: few threads on shared machines, and hypothesis without surprises."""

import os
from pathlib import Path

from places import ROOT

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: spinning threads stall others

import jaxtyping
import pytest
import torch
from hypothesis import settings

WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")  # empty where one process runs all tests
torch.set_num_threads(1 if WORKER else min(2, os.cpu_count() or 1))
# Derandomized: a red test is red for everybody. No deadline: shared machines pause.
settings.register_profile("specnb", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("specnb")


# The longest files, which start first, so that no core is idle at the end.
LONGEST = ("test_execution", "test_browser", "test_batch", "test_planted_bugs", "test_pages")
LONGEST += ("test_notebooks",)


def pytest_collection_modifyitems(items):
    """Longest files first; the order within a file stays."""
    rank = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(LONGEST)))


@pytest.fixture
def unchecked():
    """Switches the type checker of the tests off, as it is off in notebooks.

    It draws numbers from Python's `random` itself, and refuses a float for an int before the
    package can say in words what would be right.
    """
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def executed(tmp_path_factory):
    """Every notebook, run once with its defaults: the folder and a row for each.

    What the same code has finished is not run again: neither by a second process of the tests nor
    where SPECNB_TEST_RUN is the folder of an earlier `make run`.
    """
    import json

    from filelock import FileLock

    from specnb import batch

    pair = json.loads(os.environ.get("SPECNB_TEST_PAIR", "{}"))
    paths = sorted((ROOT / "notebooks").glob("*.ipynb"))
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if WORKER else base
    folder = Path(os.environ.get("SPECNB_TEST_RUN") or shared / "executed").resolve()
    with FileLock(shared / "executed.lock"):
        return folder, batch.run(paths, folder, pair)


@pytest.fixture(scope="module")
def chrome():
    """A browser; without one a skip that says so, where the whole check runs a failure."""
    from specnb.bench import browser

    if lacks := browser.missing():
        (pytest.fail if os.environ.get("SPECNB_NEEDS_BROWSER") else pytest.skip)(lacks)
    with browser.browser() as found:
        yield found


@pytest.fixture(scope="session")
def shots() -> Path:
    """Where pictures of what a browser showed are left, to be looked at."""
    folder = ROOT / "runs" / "browser"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
