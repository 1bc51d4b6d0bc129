"""The bench against an earlier commit: choices on other prompts, sides in turns, words."""

import pytest

from specnb.bench import before


class Fake(before.Side):
    """A side whose milliseconds are a function of the method; notes what it was asked."""

    capability = "FAKE"

    def __init__(self, ms):
        self.ms, self.asked = ms, []

    def ask(self, method, task, n, seed, number, temperature):
        self.asked.append((tuple(method), task, seed, number, temperature))
        return self.ms(*method)


def test_every_side_chooses_for_itself_on_other_prompts():
    def ms(kind, threads, gamma):  # fp16 with one thread is best, and a draft length of 8
        return {"float32": 4.0, "bfloat16": 3.0, "float16": 2.0}[kind] * threads - gamma % 9 / 10

    sides = {"here": Fake(ms), "before": Fake(ms)}
    found = before._compare(sides, 2, "")
    for by_temperature in found.values():
        methods = by_temperature["methods"]
        assert methods["plain, here"]["runs_as"] == ("float16", 1, 0)
        assert methods["speculative, here"]["runs_as"] == ("float16", 1, 8)
        assert methods["speculative, before"]["runs_as"] == ("bfloat16", 1, 8)
        ratios = by_temperature["ratios"]
        assert ratios["speculative over plain, here"]["ratio"] == pytest.approx(2.0 / 1.2)
        assert ratios["plain over what it was"]["ratio"] == pytest.approx(3.0 / 2.0)
    reported = {
        (method, task, number, temperature)
        for method, task, seed, number, temperature in sides["here"].asked
        if seed == before.REPORTED
    }
    assert len(reported) == 2 * len(before.TASKS) * 2 * 2  # methods, tasks, prompts, temperatures
    words = before.table({"base": "x", "machines": {"FAKE": found}})
    assert "float16, threads 1, draft length 8" in words and "1.67 [ 1.67,  1.67]" in words


def test_a_commit_that_is_not_here_is_refused():
    with pytest.raises(ValueError, match="needs a clone with the whole history"):
        before.measure(base="0" * 40)
    with pytest.raises(ValueError, match="embedded pair"):
        before.measure(target="smollm2")


def test_a_side_that_ends_says_so(tmp_path):
    (tmp_path / "specnb.py").write_text("raise SystemExit('gone')")
    with pytest.raises(RuntimeError, match="has ended"):
        before.Side(tmp_path, {})
