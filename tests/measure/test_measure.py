"""Rows: kept by the content of what was measured, in turns; intervals over prompts."""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import specnb as sn
from specnb import measure
from specnb.bench import stopping, trees
from specnb.measure import Row, RowCache, in_turns, stats, turns
from specnb.measure import rows as rows_module
from specnb.measure.rows import code_of, code_of_figures, models_of, prompt_key
from specnb.models import TableModel

PAIR = sn.Pair(TableModel.random(6, seed=1), TableModel.random(6, seed=2))
PROMPTS = [SimpleNamespace(prompt=[i], image=None) for i in range(4)]
ONE = sn.Sampling(1.0)


def measured(path, prompts=PROMPTS, drafter=None, sampling=ONE, pair=PAIR, **more):
    """Rows without their times, and how many of them were decoded anew."""
    kept = RowCache(path)
    before = len(kept)
    methods = {"it": drafter or sn.Chain(4), "plain": sn.Chain(1)}
    found = in_turns(pair, prompts, methods, sampling, kept=kept, max_new_tokens=20, **more)
    return [row._replace(seconds=0.0) for row in found["it"]], len(kept) - before


def test_a_row_is_taken_again(tmp_path):
    path = tmp_path / "rows.jsonl"
    first = measured(path)
    assert first[1] == 8
    assert measured(path) == (first[0], 0)
    assert measured(path, timed=False)[1] == 8  # times stand beside those of the same methods


@dataclass(frozen=True)
class Half(sn.Chain):
    """A class that is not of the package."""


@dataclass(frozen=True)
class Around:
    """A drafter that holds another one."""

    inner: sn.drafters.Drafter = Half(4)

    def start(self, pair, prompt, image, sampling):
        return self.inner.start(pair, prompt, image, sampling)


def test_the_code_of_a_method_is_all_of_its_classes(tmp_path, monkeypatch):
    """Of its base classes, and of whatever it holds."""
    for name in ("base", "held"):
        (tmp_path / f"{name}.py").write_text(
            "from dataclasses import dataclass\nimport specnb as sn\n"
            f"@dataclass(frozen=True)\nclass {name.title()}(sn.Chain):\n    pass\n"
        )
    monkeypatch.syspath_prepend(tmp_path)
    import base
    import held

    @dataclass(frozen=True)
    class Derived(base.Base):
        pass

    Derived.__module__ = "specnb.elsewhere"
    assert code_of(Derived()) == code_of(base.Base()) != ""
    monkeypatch.setattr(Around, "__module__", "specnb.elsewhere")
    assert code_of(Around(held.Held())) == code_of(held.Held())
    assert code_of(held.Held()) != code_of(base.Base())


OTHERS = {
    "another threshold": {"drafter": sn.Chain(4, stop=sn.AdaEDL(0.9, adaptive=False))},
    "another rule": {"drafter": sn.Chain(4, stop=sn.MaxConfidence(0.5))},
    "another class": {"drafter": Half(4)},
    "other prompts": {"prompts": PROMPTS[::-1]},
    "another temperature": {"sampling": sn.Sampling(0.5)},
    "another draft temperature": {"draft_sampling": sn.Sampling(2.0)},
    "another seed": {"seeds": (7,)},
    "another model": {"pair": sn.Pair(PAIR.target, TableModel.random(6, seed=3))},
}


@pytest.mark.slow
@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("timed", [True, False])
def test_rows_of_anything_else_are_not_taken(tmp_path, other, timed):
    path = tmp_path / "rows.jsonl"
    measured(path, timed=timed)
    again = measured(path, timed=timed, **other)
    assert again[0] == measured(tmp_path / "fresh.jsonl", timed=timed, **other)[0]
    assert again[1]


def test_a_key_without_the_drafter_would_be_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(measure.runner, "method_key", lambda drafter: ("", ""))
    path = tmp_path / "rows.jsonl"
    measured(path)
    other = OTHERS["another threshold"]
    assert measured(path, **other)[0] != measured(tmp_path / "fresh.jsonl", **other)[0]


def test_other_code_is_another_row(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    measured(path)
    monkeypatch.setattr(rows_module, "code_of_figures", lambda: "other")
    assert measured(path)[1] == 8


def test_code_of_figures_is_not_that_of_pictures(tmp_path, monkeypatch):
    (tmp_path / "views").mkdir()
    (tmp_path / "verify.py").write_text("a")
    (tmp_path / "views" / "tree.py").write_text("a")
    monkeypatch.setattr(rows_module, "PACKAGE", tmp_path)

    def sum_now():
        code_of_figures.cache_clear()
        return code_of_figures()

    first = sum_now()
    (tmp_path / "views" / "tree.py").write_text("b")
    assert sum_now() == first
    (tmp_path / "verify.py").write_text("b")
    assert sum_now() != first
    code_of_figures.cache_clear()


@pytest.mark.parametrize("rest", ['{"key": "a', "[]", '{"key": "a", "row": [1]}', "null", "\x00"])
def test_half_a_line_is_left_out_in_words(tmp_path, capsys, rest):
    path = tmp_path / "rows.jsonl"
    first, _ = measured(path)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:5]) + rest)
    again, n = measured(path)
    assert (again, n) == (first, 3)
    assert "rows.jsonl, line 6: no row of this kind, left out" in capsys.readouterr().err
    assert measured(path)[1] == 0  # the new rows stand in lines of their own


def test_a_row_of_other_kinds_is_left_out(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    measured(path)
    lines = path.read_text().splitlines()
    wrong = json.loads(lines[0]) | {"tokens": "9"}
    path.write_text("\n".join([json.dumps(wrong), *lines[1:]]))
    assert measured(path)[1] == 1 and "line 1" in capsys.readouterr().err


def test_a_method_without_a_text_is_refused_first(tmp_path):
    carried = sn.Chain(3, stop=sn.AdaEDL().start())
    with pytest.raises(ValueError, match="^drafter="):
        measured(tmp_path / "rows.jsonl", drafter=carried)
    assert not (tmp_path / "rows.jsonl").exists()


def test_what_a_key_holds(tmp_path):
    assert prompt_key("a") != prompt_key("b")
    red, blue = (Image.new("RGB", (2, 2), name) for name in ("red", "blue"))
    assert len({prompt_key("a"), prompt_key("a", red), prompt_key("a", blue)}) == 3
    assert prompt_key("a", [red]) == prompt_key("a", red) == prompt_key("a", red.copy())
    red.save(tmp_path / "red.png")
    assert prompt_key("a", tmp_path / "red.png") == prompt_key("a", red)
    assert models_of(PAIR) != models_of(sn.Pair(PAIR.target))
    cut = [PAIR.draft.trimmed(2, ids) for ids in ((0, 1), (1, 2))]
    assert len({models_of(sn.Pair(PAIR.target, draft)) for draft in (*cut, PAIR.draft)}) == 3
    assert code_of(sn.Chain()) == "" != code_of(Half())


def test_turns_go_round():
    assert list(turns("ab", 3)) == [(0, "a"), (0, "b"), (1, "b"), (1, "a"), (2, "a"), (2, "b")]


def test_seeds_stand_one_behind_the_other():
    found = in_turns(PAIR, PROMPTS, {"it": sn.Chain(2)}, ONE, seeds=(0, 100), max_new_tokens=9)
    assert [row.seed for row in found["it"]] == [0, 1, 2, 3, 100, 101, 102, 103]
    assert [row.prompt for row in found["it"][:4]] == [row.prompt for row in found["it"][4:]]


def test_a_row_counts_how_many_drafts_its_calls_kept():
    found = in_turns(
        PAIR, PROMPTS, {"it": sn.Chain(2), "no": sn.drafters.NoDraft()}, ONE, max_new_tokens=30
    )
    for row in found["it"]:
        counts = [int(n) for n in row.lengths.split()]
        assert sum(n * times for n, times in enumerate(counts)) == row.accepted
        assert 0 < sum(counts) <= row.calls and len(counts) <= 3
    assert {row.lengths for row in found["no"]} == {""}


# ------------------------------------------------------------------------------- statistics


def row(prompt: str, tokens: int, calls: int = 10, seed: int = 0, seconds: float = 1.0) -> Row:
    return Row(prompt, seed, tokens, calls, 0, 0, 0, 0, seconds)


def test_figures_are_sums_over_sums():
    group = [row("a", 30), row("b", 10, calls=30)]
    assert stats.pooled(group, "block_efficiency") == 1.0
    assert stats.pooled(group, "tokens_per_second") == 20.0
    assert stats.best_of({"x": group, "y": group[:1]}, "xy", "block_efficiency") == "y"
    with pytest.raises(ValueError, match="figure='speed': choose one of"):
        stats.pooled(group, "speed")


def test_a_prompt_is_drawn_with_its_seeds_and_temperatures():
    """Ten rows of each prompt are no ten prompts: the interval must not shrink with them."""
    rng = np.random.default_rng(3)
    tokens = rng.integers(10, 60, 12)
    once = [row(f"p{i}", int(n)) for i, n in enumerate(tokens)]
    base = [row(f"p{i}", 20) for i in range(12)]
    often = [r._replace(seed=seed) for seed in range(10) for r in once]
    base_often = [r._replace(seed=seed) for seed in range(10) for r in base]
    few = stats.geometric_ratio([(once, base)], "block_efficiency")
    many = stats.geometric_ratio([(often, base_often)], "block_efficiency")
    cells = stats.geometric_ratio([(once, base)] * 10, "block_efficiency")
    shuffled = [(once, base), (once[::-1], base[::-1])]
    for other in (many, cells, stats.geometric_ratio(shuffled, "block_efficiency")):
        assert other == pytest.approx(few)
    # Drawn by themselves, as if they were independent, rows give an interval that is too narrow.
    loose = [r._replace(prompt=f"{r.prompt} {r.seed}") for r in often]
    narrow = stats.geometric_ratio(
        [(loose, [r._replace(prompt=f"{r.prompt} {r.seed}") for r in base_often])],
        "block_efficiency",
    )
    assert narrow["high"] - narrow["low"] < 0.5 * (few["high"] - few["low"])


def test_prompts_of_two_tasks_are_drawn_apart():
    """With one and the same draw for both, their chances would add up instead of evening out."""
    rng = np.random.default_rng(5)
    tokens = rng.integers(10, 60, 30)

    def cell(task):
        ours = [row(f"{task} {i:02}", int(n)) for i, n in enumerate(tokens)]
        return ours, [row(f"{task} {i:02}", 20) for i in range(30)]

    def width(*tasks):
        found = stats.geometric_ratio([cell(task) for task in tasks], "block_efficiency")
        return np.log(found["high"] / found["low"])

    one = width("a")
    assert width("a", "a") == pytest.approx(one)
    assert width("a", "b") == pytest.approx(one / 2**0.5, rel=0.1)
    assert width("a", "b", "c", "d") == pytest.approx(one / 2, rel=0.1)


def test_rows_that_do_not_pair_up_are_refused():
    with pytest.raises(ValueError, match="same prompts and seeds"):
        stats.geometric_ratio([([row("a", 1)], [row("b", 1)])], "block_efficiency")


def test_intervals_cover():
    """About 95 of 100 intervals hold the truth."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        low, high = stats.interval(rng.normal(1.0, 1.0, 40).tolist())
        held += low <= 1.0 <= high
    assert 180 <= held <= 198
    assert stats.interval([1.0, 3.0], [1.0, 1.0], groups=["a", "a"]) == (2.0, 2.0)
    assert stats.wilson(0, 10)[0] == 0.0 and stats.wilson(10, 10)[1] == 1.0


# ------------------------------------------------------------------------------------ benches


@pytest.fixture
def small(monkeypatch, tmp_path, unchecked):
    """Both benches on table models, with few settings, keeping their rows in a new folder."""
    items = [SimpleNamespace(prompt=[i % 6, i // 6], image=None) for i in range(12)]
    for bench in (stopping, trees):
        monkeypatch.setattr(bench, "TASKS", ("caption",))
        monkeypatch.setattr(bench, "examples", lambda task, n, seed: items[:n])
        monkeypatch.setattr(bench, "KEPT", tmp_path)
    monkeypatch.setattr(sn, "load_pair", lambda *_: PAIR, raising=False)
    few = {"TEMPERATURES": (0.0, 1.0), "DECODED": (1.0,), "SHARES": (0.4, stopping.NEVER),
           "NATS": (3.0,), "LENGTHS": (3, 7, 16), "COSTS": (0.1,)}  # fmt: skip
    for name, value in few.items():
        monkeypatch.setattr(stopping, name, value)
    few = {"BUDGETS": (6,), "DEPTHS": (2,), "BEAMS": ((2, 3),), "WEAKER": (1.0, 3.0)}
    for name, value in (few | {"LEVEL_COSTS": (0.0, 0.2)}).items():
        monkeypatch.setattr(trees, name, value)
    for bench in (stopping, trees):
        monkeypatch.setattr(bench, "REAL", tmp_path / "none")

    def all_function(run, item):  # these prompts are no words
        looked = {r.block for r in run.tokens if r.verdict in ("accepted", "rejected")}
        return [(r, "function") for r in run.emitted if r.block in looked and r.depth == 1]

    monkeypatch.setattr(trees, "classed", all_function)
    return tmp_path


@pytest.mark.slow
def test_a_trial_run_leaves_nothing_behind_in_the_bench_on_stopping(small):
    stopping.measure(n=1)
    after = stopping.measure(n=2)
    for name in ("stopping.jsonl", "stopping_texts.jsonl"):
        (small / name).unlink()
    fresh = stopping.measure(n=2)
    assert plain(after) == plain(fresh)
    said = stopping.table(fresh)
    assert stopping.markdown(json.loads(json.dumps(fresh))).count("|---") > 20
    assert "over the best fixed" in said and "left out: stories" in said
    found = fresh["pairs"]["embedded"]["costs"]["MBSU"]["all"]
    assert found["oracle"]["ratio"]["ratio"] > 1 == found["fixed"]["ratio"]["ratio"]


def plain(figures):
    """What a file of figures holds, but for seconds, which are never the same."""
    for part in figures["pairs"].values():
        for found in part["decoded"]["found"].values():
            for row in found.values():
                del row["tokens_per_second"], row["ratio_seconds"]
    return json.dumps(figures)


@pytest.mark.slow
def test_a_trial_run_leaves_nothing_behind_in_the_bench_on_trees(small):
    trees.measure(n=1)
    after = trees.measure(n=2)
    for name in ("trees.jsonl", "trees_texts.jsonl"):
        (small / name).unlink()
    fresh = trees.measure(n=2)
    assert json.dumps(after) == json.dumps(fresh)
    said = trees.table(fresh)
    assert "at most so many nodes" in said and "left out: stories" in said
    for line in fresh["budget"]["embedded"]["lines"]:
        assert line["nodes"] <= line["budget"] and line["forwards"] <= line["nodes"] + 1e-9


def test_shapes_of_the_bench_on_trees():
    assert trees.parents_of((2, 2)) == (-1, -1, 0, 0, 1, 1)
    every = trees.branchings(6)
    assert len(set(every)) == len(every)
    assert all(len(trees.parents_of(shape)) <= 6 for shape in every)
    assert {(6,), (1,) * 6, (2, 2), (2, 1, 1), (3, 1)} <= set(every) and (2, 2, 1) not in every


RULE = """
def rule(tree, root_probs, node_probs, draws, eos_ids=frozenset()):
    raise NotImplementedError
"""


def test_the_code_of_a_method_is_that_of_its_functions(tmp_path, monkeypatch):
    """A verification rule of one's own is a function: edited, its rows are others."""
    monkeypatch.syspath_prepend(tmp_path)
    found = []
    for number in range(2):
        (tmp_path / f"rule{number}.py").write_text(RULE + f"# version {number}\n")
        module = importlib.import_module(f"rule{number}")
        found.append(code_of(sn.Chain(5, verify=module.rule)))
    assert "" not in found and len(set(found)) == 2
    assert code_of(sn.Chain(5, verify="block")) == ""


def test_models_are_known_by_all_that_lies_in_their_folder(tmp_path, unchecked):
    """By every byte of the weights, the acceptance head that is trained later, the device."""
    for name in ("model.safetensors", "config.json", "README.md"):
        (tmp_path / name).write_bytes(bytes(3_000_000))

    def of(**more):
        given = {"path": str(tmp_path), "dtype": "float32", "runtime": "lean runtime"}
        return models_of(SimpleNamespace(target=SimpleNamespace(**given | more), draft=None))

    known = [of()]
    assert of() == known[0]
    with (tmp_path / "model.safetensors").open("r+b") as file:
        file.seek(1_234_567)
        file.write(b"1")
    known.append(of())
    (tmp_path / "acceptance_head.safetensors").write_bytes(b"1")
    known.append(of())
    known.append(of(device="cuda"))
    bits = [SimpleNamespace(quantization_config={"bits": n}) for n in (4, 8)]
    known += [of(module=SimpleNamespace(config=config)) for config in bits]
    assert len(set(known)) == len(known)
    (tmp_path / "README.md").write_text("what is said about it")
    assert of() == known[2]


def test_times_of_another_processor_are_not_taken(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    assert measured(path)[1] == 8 and measured(path, timed=False)[1] == 8
    monkeypatch.setattr(rows_module, "processor", lambda: "another one")
    assert measured(path)[1] == 8
    assert measured(path, timed=False)[1] == 0


@pytest.mark.parametrize(
    "text, words",
    [
        ("Chain(10)", "length 10"),
        ("StochasticBeam(3, 10)", "3 x 10"),
        ("GumbelTopK((2, 1, 1, 1))", "2,1 x 3"),
        ("GumbelTopK((2, 2, 1))", "2,2,1"),
        ("GumbelTopK((1, 1, 1))", "1 x 3"),
        ("GumbelTopK((8,))", "8"),
        ("StaticTree((-1, 0, 1))", "a chain of 3"),
        ("StaticTree((-1, -1, 0, 2))", "4 nodes, 3 levels"),
    ],
)
def test_shapes_in_words(text, words):
    assert trees._in_words(text) == words
