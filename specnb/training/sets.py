"""The evaluation sets and the pictures for the notebooks: everything in `data/` but the models."""

import json
from dataclasses import asdict
from pathlib import Path

from specnb.scenes import TASKS, examples, render
from specnb.scenes.world import BACKGROUNDS

EVALUATION_SEED, N_ITEMS, N_PICTURES, PICTURE_PIXELS = 0, 200, 12, 384


def write_sets(data: Path) -> None:
    """`eval/<task>.jsonl` with 200 items each, and 12 pictures that show three or four things."""
    (data / "eval").mkdir(parents=True, exist_ok=True)
    for task in TASKS:
        rows = []
        for item in examples(task, N_ITEMS, EVALUATION_SEED):
            row = {"task": task, "prompt": item.prompt, "answer": item.answer}
            if item.asks:
                row["asks"] = item.asks
            rows.append({**row, "scene": asdict(item.scene)})
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (data / "eval" / f"{task}.jsonl").write_text(lines)
    (data / "pictures").mkdir(exist_ok=True)
    for index, scene in enumerate(notebook_scenes()):
        path = data / "pictures" / f"{index + 1:02d}.png"
        render(scene, PICTURE_PIXELS).save(path, optimize=True)


def notebook_scenes():
    """Twelve scenes of three or four things, each background three times."""
    chosen: dict[str, list] = {name: [] for name in BACKGROUNDS}
    for item in examples("caption", 400, EVALUATION_SEED + 1):
        group = chosen[item.scene.background]
        if len(item.scene.things) >= 3 and len(group) < N_PICTURES // len(BACKGROUNDS):
            group.append(item.scene)
    return [scene for group in zip(*chosen.values(), strict=True) for scene in group]
