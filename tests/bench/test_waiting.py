"""The panel's waiting times: bars of the machine's class, and a late view that is noticed."""

import pytest

from specnb.bench import live
from specnb.bench.speed import NARROW, WIDE


def of(machine: str, strip: float, other: float) -> dict:
    def panel(**p90):
        views = {
            name: {"median_ms": ms - 10, "p90_ms": ms, "max_ms": ms + 10}
            for name, ms in p90.items()
        }
        return {"views": views, "draft_lengths": [1, 16], "median_tokens": 64}

    shown = {
        "as shipped": panel(tokens=strip, figures=400),
        "all views": panel(tokens=150, laws=other),
    }
    return shown | {"machine": machine, "presses": 40}


@pytest.mark.parametrize("machine, strip, other", [(WIDE, 200, 450), (NARROW, 280, 650)])
def test_bars_are_of_the_class_that_was_measured(machine, strip, other):
    assert live.passed(of(machine, strip, other))
    for late in (of(machine, strip + 1, other), of(machine, strip, other + 1)):
        assert not live.passed(late) and live.table(late).count("missed") == 1
    assert "missed" not in live.table(of(machine, strip, other))


def test_a_slower_class_has_no_stricter_bars():
    assert live.passed(of("AVX-512", 280, 650)) and not live.passed(of(WIDE, 280, 650))


def test_where_the_time_of_a_press_is_adds_up():
    press = {"prompt": 0.04, "speculative decoding": 0.2, "plain decoding": 0.4}
    where = live._where([press | {"kernel": 0.7, "all": 1.0}, press | {"kernel": 0.8, "all": 1.3}])
    assert where["the kernel's drawing"] == pytest.approx(110)
    assert where["server and browser"] == pytest.approx(400)
    assert sum(where.values()) == pytest.approx(1150)
    figures = of(WIDE, 200, 450)
    figures["as shipped"]["where"] = where
    assert "plain decoding 400, the kernel's drawing 110, server and browser 400." in live.table(
        figures
    )
