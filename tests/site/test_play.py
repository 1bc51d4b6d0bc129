"""The page without a kernel says what the Python code says, and works in a browser."""

from __future__ import annotations

import json
import random
import re

import pytest
from places import ROOT

import specnb as sn
from specnb.bench import browser, play

STATIC = ROOT / "docs" / "_static"
N_RUNS = 200

needs_browser = pytest.mark.skipif(bool(browser.missing()), reason=browser.missing() or "-")
pytestmark = pytest.mark.weights


def recorded() -> dict:
    text = (STATIC / "recorded.js").read_text(encoding="utf-8")
    return json.loads(re.fullmatch(r"window\.SPECNB_RECORDED = (.*);\n", text, re.S)[1])


@pytest.fixture(scope="module")
def pair():
    return sn.load_pair(dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def page():
    with browser.browser() as chrome:
        sheet = chrome.new_page()
        sheet.add_script_tag(path=str(STATIC / "recorded.js"))
        sheet.add_script_tag(path=str(STATIC / "play.js"))
        yield sheet


def drawn_settings(n: int) -> list[tuple[int, dict, sn.Drafter]]:
    """(prompt, the page's settings, the drafter that they stand for), at random."""
    draw = random.Random(5)
    found = []
    for _ in range(n):
        method = draw.choice(("chain", "AdaEDL", "MaxConfidence", "tree"))
        length, threshold = draw.randint(1, 16), draw.randint(0, 19) / 20
        width, depth = draw.randint(1, play.WIDEST), draw.randint(1, play.DEEPEST)
        given = {"method": method, "length": length, "threshold": threshold}
        given |= {"width": width, "depth": depth}
        drafter = {
            "chain": lambda length=length: sn.Chain(length),
            "AdaEDL": lambda n=length, t=threshold: sn.Chain(n, stop=sn.AdaEDL(t)),
            "MaxConfidence": lambda n=length, t=threshold: sn.Chain(n, stop=sn.MaxConfidence(t)),
            "tree": lambda w=width, d=depth: sn.TopKTree((w, *[1] * (d - 1))),
        }[method]()
        found.append((draw.randrange(3 * play.PER_TASK), given, drafter))
    return found


CALL = """([n, settings]) => {
  const r = window.SPECNB_RECORDED;
  return {CALLED}(r, r.items[n], settings);
}"""
GREEDY = CALL.replace("{CALLED}", "window.SpecnbPlay.greedy")


@needs_browser
@pytest.mark.slow
def test_verdicts_in_the_browser_are_those_of_python(pair, page):
    items = play.prompts()
    wrong = []
    for number, given, drafter in drawn_settings(N_RUNS):
        item = items[number]
        run = sn.speculative(
            pair, item.prompt, item.image, drafter=drafter, max_new_tokens=play.TOKENS
        )
        mine = page.evaluate(GREEDY, [number, given])
        if mine != play.blocks_of(run):
            wrong.append((number, given))
    assert not wrong, f"{len(wrong)} of {N_RUNS}: {wrong[:3]}"


@needs_browser
def test_a_changed_verdict_is_noticed(page):
    """A page that kept what the target turns down would not pass the test above."""
    source = (STATIC / "play.js").read_text(encoding="utf-8")
    bugs = {
        "nodes[node][0] === text[at + accepted]": "true",
        "place.tree.slice(0, settings.width)": "place.tree.slice(0, settings.width + 1)",
        "acceptance < ALPHA": "acceptance > ALPHA",
    }
    settings = [[n, given] for n, given, _ in drawn_settings(60)]
    right = [page.evaluate(GREEDY, one) for one in settings]
    for before, after in bugs.items():
        assert source.count(before) == 1
        script = source.replace(before, after).replace("const SpecnbPlay", "const Planted", 1)
        script = script.replace("window.SpecnbPlay = SpecnbPlay", "window.Planted = Planted")
        page.evaluate(script.split("\n(() => {\n  const recorded")[0] + ";")
        called = CALL.replace("{CALLED}", "window.Planted.greedy")
        planted = [page.evaluate(called, one) for one in settings]
        assert planted != right, before


@pytest.mark.slow
def test_the_recording_is_what_the_models_say(pair):
    kept = recorded()
    items = play.prompts()
    assert len(kept["items"]) == len(items) == 30
    assert (STATIC / "recorded.js").stat().st_size < 3e6
    for number in (0, 17):
        item, one = items[number], kept["items"][number]
        assert one["prompt"] == item.prompt
        plain = sn.autoregressive(pair.target, item.prompt, item.image, max_new_tokens=play.TOKENS)
        assert one["text"] == list(plain.token_ids)
        for name, drafter in play.grid().items():
            fresh = play._run(pair, item, drafter, number)
            assert json.loads(json.dumps(fresh)) == one["runs"][name], name
        place = json.loads(json.dumps(play._place(pair, item, plain.token_ids[:3])))
        assert place["chain"] == one["places"][3]["chain"]
        assert place["tree"] == one["places"][3]["tree"]
        assert place["entropy"] == pytest.approx(one["places"][3]["entropy"], abs=1e-4)
        assert place["target"][0] == pytest.approx(one["places"][3]["target"][0], abs=2e-3)
