"""README's moving picture goes round, keeps its states apart and stays small."""

import io

from PIL import Image
from places import ROOT

from specnb.bench import moving


def png(colour: str, height: int) -> bytes:
    kept = io.BytesIO()
    Image.new("RGB", (1200, height), colour).save(kept, "PNG")
    return kept.getvalue()


def test_states_of_any_height_become_one_picture():
    made = moving.assembled([png("#009e73", 600), png("#d55e00", 700), png("#0072b2", 650)])
    picture = Image.open(io.BytesIO(made))
    assert picture.n_frames == 3 and picture.info["loop"] == 0
    assert picture.size == (moving.WIDTH, round(700 * moving.WIDTH / 1200))
    seen, times = [], []
    for frame in range(3):
        picture.seek(frame)
        seen.append(picture.convert("RGB").getpixel((20, 20)))
        times.append(picture.info["duration"])
    assert len(set(seen)) == 3 and times[0] == 2 * moving.SHOWN_MS > times[1]


def test_the_shipped_picture_moves():
    path = ROOT / "notebooks" / "images" / "slider.gif"
    assert path.stat().st_size < moving.LARGEST
    assert Image.open(path).n_frames == len(moving.LENGTHS)
