"""Settings of every test: few threads on shared machines, and hypothesis without surprises."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: spinning threads stall others

import jaxtyping
import pytest
import torch
from hypothesis import settings

torch.set_num_threads(min(2, os.cpu_count() or 1))
# Derandomized: a red test is red for everybody. No deadline: shared machines pause.
settings.register_profile("specnb", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("specnb")


@pytest.fixture
def unchecked():
    """Switches the type checker of the tests off, as it is off in notebooks.

    It draws numbers from Python's `random` itself, and refuses a float for an int before the
    package can say in words what would be right.
    """
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
