"""Pictures of every mode come out right; what is none, damaged or too large is refused in words."""

from __future__ import annotations

import io
import random
import struct
import tempfile
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from specnb.models import pictures
from specnb.models.pictures import as_picture, as_pictures

WHITE, BLACK = (255, 255, 255), (0, 0, 0)


def first(picture: Image.Image) -> tuple[int, int, int]:
    made = as_picture(picture)
    assert made.mode == "RGB" and made is not picture
    return made.getpixel((0, 0))


def greys(picture: object) -> list[int]:
    made = np.asarray(as_picture(picture))
    assert made.shape[2] == 3 and (made == made[..., :1]).all()
    return made[0, :, 0].tolist()


def row(values: list, kind: str) -> Image.Image:
    """One row of grey values in the mode that Pillow keeps this kind of number in."""
    return Image.fromarray(np.array([values], dtype=kind))


def written(picture: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def refused(image: object, *words: str, take=as_picture) -> str:
    with pytest.raises(ValueError) as caught:
        take(image)
    said = str(caught.value)
    assert said.startswith("image") and "; " in said and "\n" not in said, said
    assert all(word in said for word in words), said
    return said


# ---------------------------------------------------------------------------- modes of 8 bits


@pytest.mark.parametrize(
    ("mode", "colour", "wanted"),
    [
        ("1", 1, WHITE),
        ("L", 9, (9, 9, 9)),
        ("RGB", (1, 2, 3), (1, 2, 3)),
        ("RGBX", (1, 2, 3, 0), (1, 2, 3)),
        ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
        ("HSV", (0, 255, 255), (255, 0, 0)),
        ("YCbCr", (255, 128, 128), WHITE),
        ("LA", (100, 255), (100, 100, 100)),
        ("LA", (100, 0), WHITE),
        ("RGBA", (255, 0, 0, 0), WHITE),
        ("RGBA", (255, 0, 0, 51), (255, 204, 204)),
        ("RGBa", (0, 0, 0, 0), WHITE),
        ("RGBa", (51, 0, 0, 51), (255, 204, 204)),  # full red, a fifth of it
        ("La", (0, 0), WHITE),
        ("La", (51, 255), (51, 51, 51)),
    ],
)
def test_modes_of_8_bits(mode, colour, wanted):
    assert first(Image.new(mode, (2, 2), colour)) == wanted


def test_palettes_and_single_transparent_colours():
    palette = Image.new("P", (2, 1))
    palette.putpalette([200, 10, 30, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    assert first(palette) == (200, 10, 30)
    palette.info["transparency"] = 0
    assert [as_picture(palette).getpixel((x, 0)) for x in (0, 1)] == [WHITE, (0, 0, 255)]
    palette.info["transparency"] = bytes([255, 0])
    assert [as_picture(palette).getpixel((x, 0)) for x in (0, 1)] == [(200, 10, 30), WHITE]
    with_alpha = Image.new("P", (1, 1))
    with_alpha.putpalette([200, 10, 30, 0], "RGBA")
    assert first(with_alpha) == WHITE
    red = Image.new("RGB", (1, 1), (255, 0, 0))
    red.info["transparency"] = (255, 0, 0)
    assert first(red) == WHITE


def test_a_mode_that_nobody_can_convert():
    said = refused(Image.new("LAB", (2, 2)), "LAB", "save it as RGB")
    assert "damaged" not in said


# ------------------------------------------------------------------------- more than 8 bits


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I;16N"])
def test_every_order_of_16_bits(mode):
    order = ">u2" if mode == "I;16B" else "=u2" if mode == "I;16N" else "<u2"
    raw = np.array([0, 0x0101, 0x7F00, 0x8080, 0xFFFF], dtype=order).tobytes()
    assert greys(Image.frombytes(mode, (5, 1), raw, "raw", mode)) == [0, 1, 127, 128, 255]


def test_integers_and_floats_with_a_certain_range():
    assert greys(row([0, 257 * 100, 65535], "int32")) == [0, 100, 255]
    assert greys(row([0, 256], "int32")) == [0, 1]
    assert greys(row([0, 0], "int32")) == [0, 0]
    assert greys(row([0, 0.5, 0.2, 1], "float32")) == [0, 128, 51, 255]


@pytest.mark.parametrize(
    ("values", "kind", "words"),
    [
        ([0, 200], "int32", ["from 0 to 200"]),  # bytes, or nearly black in 16 bits?
        ([0, 65536], "int32", ["from 0 to 65536"]),
        ([-1, 65535], "int32", ["from -1 to 65535"]),
        ([0, 255], "float32", ["from 0 to 255"]),
        ([-0.5, 1], "float32", ["from -0.5 to 1"]),
        ([0, np.nan], "float32", ["nan"]),
        ([0, np.inf], "float32", ["inf"]),
    ],
)
def test_a_range_that_nobody_knows_is_refused(values, kind, words):
    refused(row(values, kind), "give 8 or 16 bits per channel", *words)


def test_files_of_16_bits():
    deep = row([0, 257 * 100, 65535], "uint16")
    for kind in ("PNG", "TIFF"):
        assert greys(io.BytesIO(written(deep, kind))) == [0, 100, 255]
    dark = written(row([0, 100, 257], "uint16"), "PNG")  # its values alone would not tell
    assert greys(io.BytesIO(dark)) == [0, 0, 1]
    assert greys(io.BytesIO(b"P5\n3 1\n65535\n" + struct.pack(">3H", 0, 100, 200))) == [0, 0, 1]
    holed = written(row([7, 40000], "uint16"), "PNG", transparency=7)
    assert greys(io.BytesIO(holed)) == [255, 156]


def tiff(bits: int, photometric: int, data: bytes, width: int) -> io.BytesIO:
    """One row of grey, uncompressed, as a scanner writes it."""
    tags = [(256, 3, width), (257, 3, 1), (258, 3, bits), (259, 3, 1), (262, 3, photometric)]
    tags += [(273, 4, 122), (277, 3, 1), (278, 3, 1), (279, 4, len(data))]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + b"\0\0\0\0"
    assert len(head) == 122
    return io.BytesIO(head + data)


def test_tiff_of_12_bits_and_white_as_zero():
    values = struct.pack("<3H", 0, 257 * 100, 65535)
    assert greys(tiff(16, 1, values, 3)) == [0, 100, 255]
    assert greys(tiff(16, 0, values, 3)) == [255, 155, 0]
    assert greys(tiff(12, 1, bytes([0x00, 0x0F, 0xFF]), 2)) == [0, 255]


# ------------------------------------------------------------------------ paths, files, EXIF


def test_paths_files_and_what_happens_to_them(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    Image.new("RGB", (3, 2), (1, 2, 3)).save(path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    for source in (path, str(path), "~/a.png"):
        assert first(source) == (1, 2, 3)
    file = io.BytesIO(path.read_bytes())
    assert first(file) == first(file) == (1, 2, 3)  # read from its start each time
    assert not file.closed
    with tempfile.NamedTemporaryFile() as other:
        other.write(path.read_bytes())
        assert first(other) == (1, 2, 3)
    mine = Image.new("LA", (2, 2), (9, 0))
    as_picture(mine)
    assert mine.mode == "LA" and mine.getpixel((0, 0)) == (9, 0)


@pytest.mark.parametrize("mode", ["RGB", "L", "I;16", "I;16B", "F"])
def test_pictures_are_turned_upright(mode):
    lying = Image.new(mode, (4, 2))
    lying.putpixel((0, 1), (255, 255, 255) if mode == "RGB" else 1 if mode == "F" else 255)
    lying.getexif()[0x0112] = 6  # the camera was held upright
    made = as_picture(lying)
    assert made.size == (2, 4)
    bright = np.argwhere(np.asarray(made)[..., 0])
    assert bright.tolist() == [[0, 0]]


def test_what_is_no_picture(tmp_path):
    words = tmp_path / "words.png"
    words.write_text("this is no picture")
    refused(words, f"image={str(words)!r}: this is no picture", "PNG or JPEG")
    refused(tmp_path / "missing.png", "missing.png", "no such file", "check the path")
    refused(tmp_path, "no such file")
    refused("a\0b", "no such file")
    refused("x" * 5000, "no such file")
    for image in (42, b"bytes", np.zeros((2, 2, 3), np.uint8), None, [words]):
        refused(
            image, f"image={type(image).__name__}: this is no picture", "PIL picture or the path"
        )
    with words.open() as text:
        refused(text, "open as text", "'rb'")
    with words.open("rb") as closed:
        pass
    refused(closed, "cannot be read")
    path = tmp_path / "a.png"
    Image.new("RGB", (3, 2)).save(path)
    with Image.open(path) as picture:
        pass
    refused(picture, "cannot be read")


def test_no_pixels():
    refused(Image.new("RGB", (0, 5)), "image=Image: it has no pixels (0 x 5)")
    refused(Image.new("F", (3, 0)), "no pixels (3 x 0)")


# ---------------------------------------------------------------------------------- bombs


def png_of(width: int, height: int) -> io.BytesIO:
    """A PNG of a few bytes that says it is this large."""

    def chunk(name: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + crc

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b""))


@pytest.mark.parametrize("side", [9_460, 20_000])  # above Pillow's warning, above its error
def test_bombs_are_refused_before_they_are_decoded(side, monkeypatch):
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *_: pytest.fail("decoded"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        refused(png_of(side, side), "too many pixels", "scale it down to at most 89478485 pixels")


def test_the_limit_is_ours_whatever_pillow_is_told(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    refused(png_of(20_000, 20_000), "20000 x 20000 are too many pixels")
    monkeypatch.setattr(pictures, "MOST_PIXELS", 6)
    assert as_picture(Image.new("RGB", (3, 2))).size == (3, 2)
    refused(Image.new("RGB", (7, 1)), "7 x 1 are too many pixels")


def test_no_memory(monkeypatch):
    def load(*_):
        raise MemoryError

    monkeypatch.setattr(Image.Image, "load", load)
    refused(Image.new("RGB", (3, 2)), "no memory", "scale it down")


# -------------------------------------------------------------------------- damaged files

FORMATS = {
    "PNG": {},
    "JPEG": {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"},
    "WEBP": {},
    "BMP": {},
    "TIFF": {},
    "TIFF lzw": {"compression": "tiff_lzw"},
    "TIFF jpeg": {"compression": "jpeg"},
    "PPM": {},
    "GIF": {},
    "ICO": {"sizes": [(40, 48)]},
    "JPEG2000": {},
    "TGA": {},
    "PCX": {},
    "DDS": {},
    "SGI": {},
}
CODECS = {"WEBP": "webp", "TIFF lzw": "libtiff", "TIFF jpeg": "libtiff", "JPEG2000": "jpg_2000"}


def noise() -> Image.Image:
    blocks = np.random.default_rng(0).integers(0, 255, (12, 10, 3))
    return Image.fromarray(blocks.repeat(4, axis=0).repeat(4, axis=1).astype(np.uint8))


def damaged(good: bytes, chance: random.Random, number: int) -> bytes:
    """Cut, with wrong bytes anywhere, with wrong bytes in its header, or with a gap."""
    data = bytearray(good)
    way = number % 4
    if way == 0:
        return bytes(data[: chance.randrange(len(data))])
    if way == 3:
        start = chance.randrange(len(data))
        data[start : start + chance.randint(1, 40)] = bytes(chance.randint(1, 40))
        return bytes(data)
    reach = len(data) if way == 1 else min(len(data), 80)
    for _ in range(chance.randint(1, 4)):
        data[chance.randrange(reach)] = chance.randrange(256)
    return bytes(data)


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files_of_every_format(name):
    from PIL import features

    if name in CODECS and not features.check(CODECS[name]):
        pytest.skip(f"this Pillow was built without {CODECS[name]}")
    good = written(noise(), name.split()[0], **FORMATS[name])
    assert as_picture(io.BytesIO(good)).size == ((40, 48) if name != "JPEG" else (48, 40))
    chance, causes = random.Random(name), set()
    for number in range(60):
        try:
            made = as_picture(io.BytesIO(damaged(good, chance, number)))
        except ValueError as error:
            said = str(error)
            assert said.startswith("image=BytesIO: ") and "; " in said and "\n" not in said, said
            causes.add(type(error.__cause__))
        else:  # not all damage can be seen
            assert made.mode == "RGB"
    assert causes, "nothing was refused"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "GIF", "PPM"])
def test_a_cut_file_is_never_taken(kind, tmp_path):
    good = written(noise(), kind)
    path = tmp_path / "cut"
    for part in (0.1, 0.3, 0.5, 0.7, 0.9):
        path.write_bytes(good[: int(part * len(good))])
        said = refused(path, "cut")
        assert "damaged" in said


def test_a_decoder_that_fails_in_a_new_way(monkeypatch):
    class Odd(Exception):
        pass

    def load(*_):
        raise Odd("\nsecond line")

    monkeypatch.setattr(Image.Image, "load", load)
    with pytest.raises(ValueError) as caught:
        as_picture(Image.new("RGB", (3, 2)))
    assert isinstance(caught.value.__cause__, Odd) and "\n" not in str(caught.value)


# --------------------------------------------------------------------------------- several


def test_several_pictures(tmp_path):
    red, grey = Image.new("RGB", (1, 1), (255, 0, 0)), Image.new("L", (2, 1), 7)
    for given in ([red, grey], (red, grey)):
        made = as_pictures(given)
        assert isinstance(made, list)
        assert [picture.getpixel((0, 0)) for picture in made] == [(255, 0, 0), (7, 7, 7)]
    assert [picture.size for picture in as_pictures(grey)] == [(2, 1)]
    for empty in ([], ()):
        refused(empty, f"image={empty}", "no picture", "at least one", take=as_pictures)
    gone = str(tmp_path / "gone.png")
    refused([red, gone], f"image[1]={gone!r}: there is no such file", take=as_pictures)
    refused([[red]], "image[0]=list: this is no picture", take=as_pictures)
    refused(42, "image=int: this is no picture", take=as_pictures)
