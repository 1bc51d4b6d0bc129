"""Model cards and the README of `data/`, from measured figures: `python -m specnb.bench.cards`."""

import hashlib
import json
from pathlib import Path

from specnb import arguments
from specnb.bench.quality import BARS
from specnb.paths import DATA, PACKAGE, need_checkout
from specnb.scenes import TASKS
from specnb.training import drafter, target
from specnb.training.loop import Stage


def sha256(*paths: Path) -> str:
    """One hash over the bytes of the files, in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def sources(data: Path) -> dict[str, str]:
    """What the weights depend on: the world's code and the tokenizer."""
    scenes = [PACKAGE / "scenes" / f"{name}.py" for name in ("world", "grammar", "tasks")]
    return {
        "scenes": sha256(*scenes),
        "tokenizer": sha256(data / "tokenizer" / "tokenizer.json"),
    }


def write_cards(data: Path, figures: dict, training: dict) -> None:
    """`README.md` of both model folders. `training` = seconds and machine, see the recipe."""
    models = data / "models"
    hashes = "\n".join(f"- {name}: `{value}`" for name, value in sources(data).items())
    (models / "target" / "README.md").write_text(
        _TARGET.format(
            sha=sha256(models / "target" / "model.safetensors"),
            hashes=hashes,
            stages=_stages(training["target_s"], target),
            machine=training["machine"],
            quality=target_table(figures),
            controls=control_table(figures),
            n=figures["target"]["n"],
        )
    )
    (models / "drafter" / "README.md").write_text(
        _DRAFTER.format(
            sha=sha256(models / "drafter" / "model.safetensors"),
            hashes=hashes,
            answers=drafter.N_ANSWERS,
            steps=drafter.DRAFTER.steps,
            batch=drafter.DRAFTER.batch,
            minutes=round(training["drafter_s"] / 60),
            answer_minutes=round(training["answers_s"] / 60),
            machine=training["machine"],
            temperatures=", ".join(map(str, drafter.TEMPERATURES)),
            quality=drafter_table(figures),
            n=figures["drafter"]["n"],
        )
    )


def write_alignment_cards(data: Path) -> None:
    """`README.md` of every `drafter-*` folder, from alignment.json and the stored results of
    `python -m specnb.bench drafters`. ValueError where they were not measured."""
    stored = json.loads((data / "results" / "drafters.json").read_text(encoding="utf-8"))
    hashes = "\n".join(f"- {name}: `{value}`" for name, value in sources(data).items())
    for folder in sorted((data / "models").glob("drafter-*")):
        if not any(cell["drafter"] == folder.name for cell in stored["figures"]["cells"]):
            raise ValueError(f"{folder.name}: run `python -m specnb.bench drafters --store` first")
        (folder / "README.md").write_text(alignment_card(folder, stored, hashes))


def alignment_card(folder: Path, stored: dict, hashes: str) -> str:
    """The card of a drafter that was trained by `specnb.training.align`."""
    about = json.loads((folder / "alignment.json").read_text(encoding="utf-8"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    eyes = folder / "adapter.safetensors"
    layers = config["num_hidden_layers"]
    kind = f"{layers} layer{'s' * (layers > 1)} x {config['hidden_size']}"
    sees = (
        ".\n\nIt reads what its target's vision tower and projector make of the picture, projected "
        "to its own\nwidth, in nine places before the text. `adapter.json` names that target. "
        "Without a picture it reads\nthe text alone"
        if eyes.is_file()
        else ", text only"
    )
    more = f"\n- adapter sha256: `{sha256(eyes)}`" if eyes.is_file() else ""
    recipe = about["recipe"]
    then = f", then {recipe['then_steps']:,} with `{recipe['then']}`" if recipe["then"] else ""
    figures = stored["figures"]
    return _ALIGNED.format(
        name=folder.name,
        kind=kind,
        sees=sees,
        vocabulary=config["vocab_size"],
        sha=sha256(folder / "model.safetensors"),
        more=more,
        hashes=hashes,
        command=about["command"].replace("python -m specnb.training ", ""),
        start=about["start"],
        steps=f"{recipe['steps']:,}",
        loss=recipe["loss"],
        then=then,
        batch=recipe["batch"],
        seed=recipe["seed"],
        answers=f"{about['n_answers']:,}",
        temperatures=", ".join(map(str, about["asking"]["temperatures"])),
        cpu=about["cpu_s"],
        n=figures["n"],
        length=figures["draft_length"],
        quality=alignment_table(figures, folder.name),
    )


def alignment_table(figures: dict, name: str) -> str:
    """Acceptance, block efficiency and word classes of one drafter, as Markdown."""
    lines = [
        "| task | sampling | acceptance | block efficiency (95 %) | MBSU | function words "
        "| seen words |",
        "|---|---|---|---|---|---|---|",
    ]
    for cell in figures["cells"]:
        if cell["drafter"] == name:
            tau = cell["tau"]
            lines.append(
                f"| {cell['task']} | {cell['sampling']} | {cell['alpha']['value']:.3f} "
                f"| {tau['value']:.2f} ({tau['low']:.2f}-{tau['high']:.2f}) "
                f"| {cell['mbsu']['value']:.2f} | {cell['function']['value']:.1%} "
                f"| {cell['seen']['value']:.1%} |"
            )
    return "\n".join(lines)


def _stages(seconds: dict[str, float], recipe) -> str:
    stages = {s.name: s for s in vars(recipe).values() if isinstance(s, Stage)}
    lines = ["| stage | steps | rows per step | learning rate | minutes |", "|---|---|---|---|---|"]
    for name, stage in stages.items():
        minutes = seconds.get(name, 0.0) / 60
        lines.append(f"| {name} | {stage.steps} | {stage.batch} | {stage.lr} | {minutes:.0f} |")
    return "\n".join(lines)


def target_table(figures: dict) -> str:
    """Quality against the bars, as Markdown."""
    seen = figures["target"]
    lines = ["| measured | value | bar |", "|---|---|---|"]
    for name, bar in BARS.items():
        label = "captions that parse" if name == "parsed" else f"captions, {name}"
        lines.append(f"| {label} | {seen['caption'][name]:.1%} | {bar:.0%} |")
    for task in ("conversation", "science"):
        low, high = seen[task]["interval"]
        lines.append(f"| {task} right | {seen[task]['right']:.1%} ({low:.1%}-{high:.1%}) | 90% |")
    return "\n".join(lines)


def control_table(figures: dict) -> str:
    """Exchanged and blank pictures, as Markdown."""
    seen = figures["target"]
    swap, grey = seen["exchanged_picture"], seen["blank_picture"]
    lines = [
        "| attribute | exchanged picture: against the shown scene | against its own scene "
        "| blank picture | best constant guess |",
        "|---|---|---|---|---|",
    ]
    for name in ("place", "colour", "kind", "size", "count"):
        lines.append(
            f"| {name} | {swap['against_the_shown_scene'][name]:.1%} "
            f"| {swap['against_the_own_scene'][name]:.1%} "
            f"| {grey['scores'][name]:.1%} | {grey['constant_guess'][name]:.1%} |"
        )
    lines.append(f"\nExchanging the picture changes {swap['tokens_changed']:.0%} of the tokens.")
    return "\n".join(lines)


def drafter_table(figures: dict) -> str:
    """Block efficiency and acceptance by word class, as Markdown."""
    lines = [
        "| task | sampling | block efficiency (95 %) | MBSU | function words | seen words |",
        "|---|---|---|---|---|---|",
    ]
    for task in TASKS:
        for key, label in (("greedy", "greedy"), ("sampled", "T = 1")):
            row = figures["drafter"][task][key]
            low, high = row["interval"]
            rates = row["acceptance"]
            lines.append(
                f"| {task} | {label} | {row['block_efficiency']:.2f} ({low:.2f}-{high:.2f}) "
                f"| {row['mbsu']:.2f} | {rates['function']['rate']:.1%} "
                f"| {rates['seen']['rate']:.1%} |"
            )
    return "\n".join(lines)


def write_data_readme(data: Path) -> None:
    """`data/README.md`: what each file is, where it comes from, its licence and its sha256."""
    files = sorted(
        path
        for path in data.rglob("*")
        if path.is_file()
        and path not in (data / "README.md", data / "SHA256SUMS")
        and path.parent != data / "results"
    )
    rows = "\n".join(
        f"| `{path.relative_to(data).as_posix()}` | {path.stat().st_size:,} | `{sha256(path)}` |"
        for path in files
    )
    (data / "README.md").write_text(_DATA.format(rows=rows))


def load_figures(path: Path) -> dict:
    """Figures written by `python -m specnb.bench quality --json PATH`."""
    if not path.is_file():
        raise ValueError(
            f"figures={path}: run `python -m specnb.bench quality --json {path}` first"
        )
    return json.loads(path.read_text())


_TARGET = """# Embedded target: a tiny LLaVA that sees

`LlavaForConditionalGeneration`: CLIP tower (4 layers x 192, 96 x 96 pixels, patch 32, so nine
image tokens, one per grid cell), two-layer projector, Llama text model of 8 layers x 384 with a
tied head, byte-level BPE of 990 entries, 1,024 positions, bf16 weights. It describes and discusses
the picture world of `specnb.scenes` and knows nothing else.

- weights sha256: `{sha}`
- licence: Apache-2.0; trained by this project on pictures and texts that this project generates
{hashes}

## How it was trained

    python -m specnb.training tokenizer
    python -m specnb.training target

Seed 0, {machine}. A killed run goes on from its last checkpoint. Minutes are wall-clock on a
machine that did other work as well.

{stages}

## Measured

`python -m specnb.bench quality`, {n} unseen scenes per task, greedy. Place, colour, kind and size
are judged on what a caption mentions (`specnb.scenes.score`).

{quality}

Controls: the same prompts with the next scene's picture, and with an even grey picture.

{controls}
"""

_DRAFTER = """# Embedded drafter: one layer, text only

`LlamaForCausalLM`, 1 layer x 128 with a tied head, the target's tokenizer, text only, 1,024
positions, bf16 weights.

- weights sha256: `{sha}`
- licence: Apache-2.0; trained by this project on the embedded target's own answers
{hashes}

## How it was trained

    python -m specnb.training drafter

{answers:,} answers of the embedded target, sampled at temperatures {temperatures} ({answer_minutes}
minutes), then {steps:,} steps of {batch} answers with KL(target || drafter) at every answer
position ({minutes} minutes), seed 0, {machine}.

## Measured

`python -m specnb.bench quality`, {n} evaluation prompts per task, draft length 5. Intervals are
bootstrapped over prompts. Seen words tell a colour, kind, size, place or count that neither the
prompt nor the text so far has named; the rate is accepted / examined.

{quality}
"""

_ALIGNED = """# Embedded drafter `{name}`

`LlamaForCausalLM`, {kind} with a tied head, the target's tokenizer ({vocabulary} ids), bf16
weights{sees}.

- weights sha256: `{sha}`{more}
- licence: Apache-2.0; trained by this project on the embedded target's own answers
{hashes}

## How it was trained

    python -m specnb.training {command}

Start: {start}.
{steps} steps of {batch} answers with `{loss}`{then}, seed {seed}, on {answers} answers of the
embedded target at temperatures {temperatures}; {cpu} seconds of one CPU core, answers apart.
The command gives a drafter of this kind, not these very bits.

## Measured

`python -m specnb.bench drafters`, {n} evaluation prompts per task, draft length {length}. Intervals
are bootstrapped over prompts. Seen words tell a colour, kind, size, place or count that neither the
prompt nor the text so far has named; the rate is accepted / examined.

{quality}
"""

_DATA = """# Data

Everything here was made by this project: pictures and texts by `specnb.scenes` from seeds, models
by `specnb.training` on those; prompts were written for it. Licence: Apache-2.0, like the code. No
file comes from elsewhere.

- `tokenizer/`: byte-level BPE (`python -m specnb.training tokenizer`)
- `eval/`: 200 items per task, with scene, prompt and reference answer, and `pictures/`: twelve
  pictures of 384 x 384 for the notebooks (`python -m specnb.training sets`)
- `prompts/first_real_model.jsonl`: 24 prompts for a target that reads text only, six each to
  rewrite, copy, shorten and mend a short text
- `models/`: the embedded target, its drafter, and seven drafters trained in other ways (lesson
  05), each with a card; `quality.json`, `exactness.json` and `training.json` hold figures behind
  the cards
- `results/`: the figures behind RESULTS.md, a file per subject (`python -m specnb.bench NAME
  --store`); they have no sums, as every measurement renews them
- `sweeps/`: what `python -m specnb.batch sweep` can run, and `example.csv`, what `collect`
  made of `draft_length.yml`, `stopping.yml` and `trees.yml` on two cores, rounded, and without
  the columns `figure.*` and `finished`

`python -m specnb.doctor` checks the files against `SHA256SUMS`.

| file | bytes | sha256 |
|---|---|---|
{rows}
"""


if __name__ == "__main__":
    arguments.no_options("specnb.bench.cards", __doc__)
    try:
        need_checkout("cards")
    except ValueError as error:
        raise SystemExit(str(error)) from None
    write_cards(
        DATA,
        load_figures(DATA / "models" / "quality.json"),
        load_figures(DATA / "models" / "training.json"),
    )
    write_alignment_cards(DATA)
    write_data_readme(DATA)
