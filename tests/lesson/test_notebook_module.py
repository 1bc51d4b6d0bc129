"""specnb.notebook: parameters, prompts, the result row."""

import functools
import json
import os
import re
import sys
from types import SimpleNamespace

import numpy as np
import plotly.io
import pytest
import torch
from PIL import Image

import specnb as sn
from specnb import files, lesson, notebook, paths, smollm2
from specnb.models import settings
from specnb.notebook import RunConfig, StoppingConfig, TreeConfig

DEFAULTS = {field: getattr(RunConfig(), field) for field in RunConfig.__dataclass_fields__}


# ---- the door


def test_the_door_has_what_notebooks_use_and_no_more():
    """The code behind it may move; what cells say may not."""
    own = {name for name in vars(notebook) if not name.startswith("_")}
    own -= {"annotations", "jaxtyping"}  # of the __future__, and of the hook of the tests
    assert own == set(notebook.__all__)
    texts = [path.read_text(encoding="utf-8") for path in paths.NOTEBOOKS.glob("*.ipynb")]
    used = set(re.findall(r"sn\.notebook\.(\w+)", "".join(texts)))
    assert {"measure", "panel", "save_row", "TreeConfig"} <= used
    assert used <= set(notebook.__all__)
    cells = set(re.findall(r"\blesson\.(\w+)\(", "".join(texts)))
    assert {"items", "by_task", "chosen"} <= cells <= set(lesson.__all__)
    assert lesson.items is not notebook.items  # that of any pair, and that of a file or a task
    assert (sn.RunConfig, sn.setup) == (notebook.RunConfig, notebook.setup)


# ---- parameters


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("draft_length", "7", 7),
        ("draft_length", 3.0, 3),
        ("draft_length", " 4 ", 4),
        ("temperature", 0, 0.0),
        ("temperature", "1e-3", 0.001),
        ("temperature", "0.7", 0.7),
        ("top_p", "1", 1.0),
        ("seed", "12", 12),
        ("seed", "9007199254740993", 2**53 + 1),
        ("seed", 2**63 - 1, 2**63 - 1),
        ("seed", np.int64(2**62 + 1), 2**62 + 1),
        ("draft_length", np.int32(7), 7),
        ("temperature", np.float64(0.5), 0.5),
        ("n_prompts", 2.0, 2),
        ("task", "science", "science"),
        ("target", None, ""),
        ("draft", None, ""),
        ("prompts", None, ""),
        ("out_dir", 123, "123"),
    ],
)
def test_values_of_papermill_are_coerced(name, given, value):
    cfg = RunConfig.from_notebook({**DEFAULTS, name: given, "unrelated": object()})
    assert getattr(cfg, name) == value and type(getattr(cfg, name)) is type(value)


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("draft_length", 0, "draft_length=0: give a whole number >= 1"),
        ("draft_length", "many", "draft_length='many': give a whole number"),
        ("draft_length", 2.5, "draft_length=2.5: give a whole number"),
        ("draft_length", True, "draft_length=True: give a whole number"),
        ("draft_length", None, "draft_length=None: give a whole number"),
        ("draft_length", [1, 2], "draft_length=.* give a whole number"),
        ("temperature", -1, "temperature=-1.0: give a finite number >= 0"),
        ("temperature", "nan", "temperature=nan"),
        ("temperature", "hot", "temperature='hot': give a number"),
        ("top_p", 0, r"top_p=0.0: give a number in \(0, 1\]"),
        ("top_p", 1.5, "top_p=1.5"),
        ("task", "captions", "task='captions': choose one of caption, conversation, science"),
        ("task", 1.5, "task=1.5: give a text"),
        ("n_prompts", 0, "n_prompts=0: give a whole number >= 1"),
        ("seed", -1, "seed=-1: give a whole number >= 0"),
        ("seed", 2**63, "seed=9223372036854775808: give a whole number >= 0 and <= 92233"),
        ("seed", float(2**53), r"seed=9007199254740992.0: give a whole number"),
        ("seed", "1e300", "seed='1e300': give a whole number"),
        ("temperature", None, "temperature=None: give a number"),
        ("temperature", True, "temperature=True: give a number"),
        ("temperature", 1e-46, "temperature=1e-46: it is too small to divide by; give 0"),
        ("task", b"caption", "task=b'caption': give a text"),
        ("out_dir", "\ud83d", "out_dir='.ud83d': character 1 is half of a surrogate pair"),
        ("target", "./nowhere", "model './nowhere': there is no such folder"),
        ("draft", "a/b/c", "model 'a/b/c': there is no such folder"),
        ("prompts", "none.jsonl", "prompts='none.jsonl': there is no such file"),
        ("out_dir", __file__, "this is a file; give a folder"),
    ],
)
def test_wrong_values_are_refused_in_words(name, given, said):
    with pytest.raises(ValueError, match=said):
        RunConfig.from_notebook({**DEFAULTS, name: given})


@pytest.mark.parametrize("name", DEFAULTS)
def test_a_missing_parameter_has_its_default(name):
    names = {key: value for key, value in DEFAULTS.items() if key != name}
    assert RunConfig.from_notebook(names) == RunConfig.from_notebook(DEFAULTS)


def test_no_parameter_at_all_is_refused():
    with pytest.raises(ValueError, match="run the cell tagged 'parameters' first.*draft_length"):
        RunConfig.from_notebook({"x": 1})


def test_a_drafter_by_its_text():
    assert RunConfig(drafter="Chain(3)").drafter == "Chain(3)"
    assert StoppingConfig(drafter="Chain(3)").draft_length == 16
    with pytest.raises(ValueError, match="did you mean Chain?"):
        RunConfig(drafter="Chian(3)")
    for cls, more in (
        (RunConfig, {"draft_length": 4}),
        (StoppingConfig, {"threshold": 0.3}),
        (TreeConfig, {"branching": "2,2"}),
    ):
        with pytest.raises(ValueError, match=f"and {next(iter(more))}=.*: the drafter says it all"):
            cls(drafter="Chain(3)", **more)


def test_paths_may_be_relative_to_the_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = RunConfig(prompts="README.md")
    assert cfg.prompts == str(notebook.ROOT / "README.md")
    (tmp_path / "README.md").write_text("here")
    assert RunConfig(prompts="README.md").prompts == "README.md"


def test_a_config_made_by_hand_is_judged_the_same(unchecked):
    cfg = RunConfig(draft_length=np.int64(3), seed=np.int64(2**62 + 1), temperature=1)
    assert (cfg.draft_length, cfg.seed, cfg.temperature) == (3, 2**62 + 1, 1.0)
    json.dumps({name: getattr(cfg, name) for name in DEFAULTS})
    for name, value in (("draft_length", "3"), ("n_prompts", 2.0), ("seed", True)):
        with pytest.raises(ValueError, match=f"^{name}=.*: give a whole number"):
            RunConfig(**{name: value})
    for name, value in (("threshold", "0.5"), ("entropy_factor", None), ("adaptive", 1)):
        with pytest.raises(ValueError, match=f"^{name}=.*: give"):
            notebook.StoppingConfig(**{name: value})
    for name, value in (("width", 2.0), ("draft_temperature", "1")):
        with pytest.raises(ValueError, match=f"^{'temperature' if 'temp' in name else name}="):
            notebook.TreeConfig(**{name: value})


def test_the_largest_seed_goes_on_with_the_smallest(tmp_path, monkeypatch, unchecked):
    """`measure` gives every prompt a seed of its own."""
    seeds = []
    pair = sn.Pair(sn.models.TableModel.random(3), sn.models.TableModel.random(3, seed=1))

    def noted(pair, request, drafter, real=sn.Decoding):
        seeds.append(request.seed)
        return real(pair, request, drafter)

    monkeypatch.setattr(sn.decode, "Decoding", noted)
    cfg = RunConfig(out_dir=str(tmp_path), seed=2**63 - 1)
    prompts = [notebook.Item([0]), notebook.Item([1])]
    assert len(notebook.measure(pair, prompts, {"chain": sn.Chain(2)}, cfg)) == 2
    assert seeds == [2**63 - 1] * 2 + [0] * 2


@pytest.mark.parametrize("kind", ["DraftModelConfig", "StoppingConfig", "TreeConfig"])
def test_lessons_on_a_draft_model_are_refused_without_one(kind, unchecked, monkeypatch):
    monkeypatch.setattr(smollm2, "_fault", lambda sums: "")  # as if it had been made
    made = getattr(notebook, kind)
    with pytest.raises(ValueError, match="target='smollm2' without draft: .* lesson 00, 01 or 07"):
        made(target="smollm2")
    draft = str(paths.DATA / "models" / "drafter")
    assert made().draft == "" and made(draft=draft).draft == draft  # the embedded target
    assert made(target=str(paths.DATA / "models" / "target"), draft=draft).target
    assert RunConfig(target="smollm2").target == "smollm2"


def test_a_text_only_target_is_asked_for_texts(unchecked):
    blind = SimpleNamespace(target=SimpleNamespace(sees_images=False))
    seeing = SimpleNamespace(target=SimpleNamespace(sees_images=True))
    assert all(item.image is None for item in lesson.items(RunConfig(n_prompts=3), blind))
    tasks = lesson.by_task(RunConfig(n_prompts=2), blind)
    assert tasks and all(one.image is None for group in tasks.values() for one in group)
    found = lesson.by_task(RunConfig(n_prompts=2), seeing)
    assert set(found) == set(sn.scenes.TASKS) and found["caption"][0].image is not None


def test_config_gives_the_sampling():
    assert RunConfig(temperature=0.7, top_p=0.9).sampling == sn.Sampling(0.7, top_p=0.9)


# ---- prompts


def test_built_in_items():
    cfg = RunConfig(task="science", n_prompts=2, seed=3)
    found = notebook.items(cfg)
    assert [item.prompt for item in found] == [
        item.prompt for item in sn.scenes.examples("science", 2, 3)
    ]
    groups = notebook.by_task(cfg)
    assert list(groups) == list(sn.scenes.TASKS)
    assert all(len(group) == 2 for group in groups.values())


def write(tmp_path, *rows) -> RunConfig:
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return RunConfig(prompts=str(path), n_prompts=9)


def test_items_of_a_file(tmp_path):
    (tmp_path / "pictures").mkdir()
    Image.new("L", (8, 6), 3).save(tmp_path / "pictures" / "a.png")
    cfg = write(
        tmp_path,
        {"prompt": "What?", "image": "pictures/a.png", "task": "mine"},
        "",
        {"prompt": "And?", "image": None},
    )
    first, second = notebook.items(cfg)
    assert (first.prompt, first.task, first.image.mode, first.image.size) == (
        "What?",
        "mine",
        "RGB",
        (8, 6),
    )
    assert (second.prompt, second.image, second.task, second.scene) == (
        "And?",
        None,
        "prompts",
        None,
    )
    assert list(notebook.by_task(cfg)) == ["mine", "prompts"]
    assert len(notebook.items(RunConfig(prompts=cfg.prompts, n_prompts=1))) == 1


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2: this is no JSON"),
        ("[1]", "line 2: write an object"),
        ("{}", "line 2: 'prompt' is missing"),
        ({"prompt": "  "}, "line 2: 'prompt' is missing or empty"),
        ({"prompt": 3}, "line 2: 'prompt' is missing or empty"),
        ({"prompt": "a", "picture": "x"}, "line 2: unknown key 'picture'; known are prompt, image"),
        ({"prompt": "a", "image": "none.png"}, "line 2: image=.*no such file"),
        ({"prompt": "a", "image": 3}, "line 2: image=3: give a text"),
        ({"prompt": "a", "image": "p.jsonl"}, "line 2: image=.*no picture"),
        ({"prompt": "a", "task": ["b"]}, "line 2: task="),
        ({"prompt": "a", "image": 0}, "line 2: image=0: give a text"),
        ({"prompt": "a", "task": []}, r"line 2: task=\[\]: give a text"),
        ({"prompt": "half \ud83d"}, "line 2: prompt=.*half of a surrogate pair"),
        ({"prompt": "a", "task": "\udfff"}, "line 2: task=.*half of a surrogate pair"),
        ('{"prompt": "a", "prompt": "b"}', "line 2: .*the key 'prompt' stands there twice"),
        ('{"prompt": "a"} {"prompt": "b"}', "line 2: this is no JSON .Extra data"),
        ('{"prompt": "a"}\r{"prompt": "b"}', "line 2: this is no JSON .Extra data"),
        ("[" * 100_000, "line 2: this cannot be read"),
        ('{"prompt": ' + "9" * 5000 + "}", "line 2: this cannot be read"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, said):
    with pytest.raises(ValueError, match=said):
        notebook.items(write(tmp_path, {"prompt": "fine"}, line))


SEPARATORS = ("\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e")


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["", "BOM"])
def test_lines_end_at_newlines_only(tmp_path, ending, mark):
    """What the usual writers leave as it is within a text must not cut it."""
    texts = [f"a{separator}b" for separator in SEPARATORS if ord(separator) > 0x1F]
    texts += ["שלום 🙂", "c"]
    lines = [json.dumps({"prompt": text}, ensure_ascii=False) for text in texts]
    path = tmp_path / "p.jsonl"
    path.write_bytes(mark + ending.join(lines).encode() + ending.encode())
    cfg = RunConfig(prompts=str(path), n_prompts=99)
    assert [item.prompt for item in notebook.items(cfg)] == texts
    assert files.text_lines(path)[: len(lines)] == lines


@pytest.mark.parametrize(
    ("data", "line"),
    [
        ('{"prompt": "a"}'.encode("utf-16"), 1),
        ('{"prompt": "a"}\n{"prompt": "é"}'.encode("latin-1"), 2),
        (b'{"prompt": "a"}\n\n{"prompt": "\xed\xa0\xbd"}\n', 3),  # half a pair, as if it were text
    ],
)
def test_other_encodings_are_named_with_file_and_line(tmp_path, data, line):
    (tmp_path / "p.jsonl").write_bytes(data)
    with pytest.raises(ValueError, match=f"^p.jsonl, line {line}: this is not UTF-8; save"):
        notebook.items(RunConfig(prompts=str(tmp_path / "p.jsonl")))


def test_an_empty_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="the file is empty"):
        notebook.items(write(tmp_path, "", " "))


# ---- results


def test_row_is_written_in_one_step(tmp_path, capsys, monkeypatch):
    cfg = RunConfig(out_dir=str(tmp_path / "new" / "folder"))
    figures = {"tau": torch.tensor(2.5), "n": 3, "none": None}
    path = notebook.save_row(cfg, "00_x", figures, text="über")
    row = json.loads(path.read_text(encoding="utf-8"))
    assert path.name == "00_x.json" and os.listdir(path.parent) == ["00_x.json"]
    assert row["headline"] == {"tau": 2.5, "n": 3, "none": None} and row["text"] == "über"
    assert row["config"] == {**DEFAULTS, "out_dir": cfg.out_dir} and row["notebook"] == "00_x"
    with pytest.raises(TypeError, match="object cannot stand in a JSON row"):
        notebook.save_row(cfg, "00_x", {"x": object()})
    assert json.loads(path.read_text(encoding="utf-8")) == row  # the old row is untouched
    assert os.listdir(path.parent) == ["00_x.json"]
    capsys.readouterr()
    assert notebook.save_row(RunConfig(), "00_x", {}) is None
    assert "nothing is written" in capsys.readouterr().out


def test_figures_that_are_no_numbers_are_missing_and_named(tmp_path, capsys):
    cfg = StoppingConfig(out_dir=str(tmp_path), threshold=float("inf"))
    figures = {"x": float("nan"), "y": torch.tensor(float("-inf")), "z": np.float32("inf"), "n": 1}
    path = notebook.save_row(cfg, "03_x", figures, rows=[{"a": [1.0, float("inf")]}])
    row = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(name))
    assert row["headline"] == {"x": None, "y": None, "z": None, "n": 1}
    places = {"headline.x": "nan", "headline.y": "-inf", "headline.z": "inf", "rows[0].a[1]": "inf"}
    assert row["not_finite"] == places and row["rows"] == [{"a": [1.0, None]}]
    assert row["config"]["threshold"] == "inf"  # it was asked for, and is read like that
    said = "headline.x is nan, headline.y is -inf, headline.z is inf and 1 more: kept as missing"
    assert said in capsys.readouterr().out
    assert StoppingConfig.from_notebook(row["config"]).threshold == float("inf")


def test_a_row_has_to_have_a_place_before_the_lesson_begins(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="out_dir='.*below': .*file is a file; give a folder"):
        RunConfig(out_dir=str(tmp_path / "file" / "below"))
    assert RunConfig(out_dir=str(tmp_path / "new" / "folder")).out_dir


# ---- set-up


@pytest.fixture
def settings_kept():
    threads, renderer = torch.get_num_threads(), plotly.io.renderers.default
    yield
    torch.set_num_threads(threads)
    settings.set_dtype("float32")
    plotly.io.renderers.default = renderer


def test_setup_prints_one_line(settings_kept, capsys, monkeypatch):
    monkeypatch.delenv("PLOTLY_RENDERER", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for _ in range(2):
        sn.setup()
        (line,) = capsys.readouterr().out.splitlines()
        assert line.startswith("specnb ") and line.endswith("1 thread") and "torch" in line
    assert plotly.io.renderers.default == "plotly_mimetype"
    sn.setup(threads=2, renderer="json", dtype="bfloat16")
    assert "bfloat16 · 2 threads" in capsys.readouterr().out
    assert plotly.io.renderers.default == "json" and settings.dtype() == "bfloat16"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"threads": 0}, "threads=0"),
        ({"threads": "two"}, "threads='two': give a whole number >= 1 .*or 'auto'"),
        ({"threads": True}, "threads=True: give a whole number >= 1"),
        ({"threads": 2.0}, "threads=2.0: give a whole number >= 1"),
        ({"threads": None}, "threads=None: give a whole number >= 1"),
        ({"dtype": "int8"}, "dtype='int8'"),
        ({"renderer": "crayon"}, "crayon"),
    ],
)
def test_setup_refuses_in_words(settings_kept, unchecked, arguments, said):
    with pytest.raises(ValueError, match=said):
        sn.setup(**arguments)


def test_setup_takes_numbers_of_numpy(settings_kept, capsys, unchecked):
    sn.setup(threads=np.int64(1), dtype="float32")
    assert capsys.readouterr().out.endswith("1 thread\n")


def test_code_without_its_data_says_so_in_one_sentence(tmp_path, capsys, monkeypatch):
    from specnb import batch, doctor
    from specnb.batch import plan

    paths.need_share()
    said = (
        "^specnb is here without its data and notebooks, which should be in .*: install its wheel"
    )
    with pytest.raises(ValueError, match=said):
        paths.need_share(tmp_path)
    with pytest.raises(ValueError, match="^address: this needs the repository; clone it"):
        notebook.write_address(tmp_path)
    tables = sys.modules["specnb.batch.collect"]  # its name in the package is the function
    lacking = functools.partial(paths.need_share, tmp_path)
    monkeypatch.setattr(paths, "need_share", lacking)
    monkeypatch.setattr(paths, "NOTEBOOKS", tmp_path / "notebooks")
    monkeypatch.setattr(tables, "need_share", lacking)
    with pytest.raises(ValueError, match=said):
        plan.plan_of(["00_start_here"])
    with pytest.raises(ValueError, match=said):
        batch.report(tmp_path)
    with pytest.raises(SystemExit):
        batch.main(["run", "--out", str(tmp_path / "out")])
    capsys.readouterr()
    assert doctor.main([]) == 1
    assert capsys.readouterr().err.startswith("wrong: specnb is here without its data")


def test_panel_escapes_the_prompt():
    pair = sn.Pair(sn.models.TableModel.random(3), sn.models.TableModel.random(3, seed=1))
    run = sn.speculative(pair, [0], max_new_tokens=4)
    picture = Image.new("RGB", (900, 600))
    shown = notebook.panel(notebook.Item("<script>\nx", picture), run)._repr_html_()
    assert "&lt;script&gt;<br>x" in shown and "<script" not in shown
    assert "data:image/png;base64," in shown
    assert "<img" not in notebook.panel(notebook.Item("x"), run)._repr_html_()
