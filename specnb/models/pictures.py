"""Pictures of every kind as a model reads them: RGB, 8 bits per channel, upright, on white."""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

MOST_PIXELS = 89_478_485  # where Pillow suspects a decompression bomb: 256 MiB as RGB
PLAIN = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV")
WITH_ALPHA = ("LA", "PA", "RGBA")
PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}
SIXTEEN_BITS = ("PNG", "PPM")  # their 32-bit integers stand for 16 bits, whatever the values
BITS_PER_SAMPLE, PHOTOMETRIC = 258, 262  # tags of TIFF
SMALLER = f"scale it down to at most {MOST_PIXELS} pixels"
REMEDY = "give a PIL picture or the path of a picture file"
DEPTH = "give 8 or 16 bits per channel"


class _Unfit(Exception):
    """What is wrong with a picture, and the remedy."""


def as_picture(image: Any) -> Picture:
    """A new PIL picture in RGB, upright, from a picture, a path or an open binary file.

    Transparent parts are shown on white. 16-bit pictures, floats from 0 to 1 and integers that
    reach beyond 255 but not beyond 65535 are scaled to 8 bits. ValueError, in one sentence, for
    what is no picture, is damaged, has no pixels or more than `MOST_PIXELS`, or whose values have
    no certain range.
    """
    return _picture(image, "image")


def as_pictures(image: Any) -> list[Picture]:
    """`as_picture` of one picture, or of each in a list or tuple that is not empty.

    ValueError as there; in a list it names the index of the picture.
    """
    if not isinstance(image, (list, tuple)):
        return [as_picture(image)]
    if not image:
        raise ValueError(f"image={image!r}: this holds no picture; give at least one, or None")
    return [_picture(one, f"image[{index}]") for index, one in enumerate(image)]


def _picture(image: Any, argument: str) -> Picture:
    from PIL import Image, UnidentifiedImageError

    label = f"{argument}={type(image).__name__}"
    if isinstance(image, (str, Path)):
        label = f"{argument}={str(image)!r}"
        image = os.path.expanduser(image)
        if not os.path.isfile(image):
            raise ValueError(f"{label}: there is no such file; check the path")
    elif isinstance(image, io.TextIOBase):
        raise ValueError(f"{label}: this file is open as text; open it with mode 'rb'")
    elif not isinstance(image, Image.Image) and not hasattr(image, "read"):
        raise ValueError(f"{label}: this is no picture; {REMEDY}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they tell of oddities; what is wrong is raised
            if isinstance(image, Image.Image):
                return _rgb(image)
            with Image.open(image) as opened:
                return _rgb(opened)
    except _Unfit as error:
        raise ValueError(f"{label}: {error}") from None
    except UnidentifiedImageError:
        raise ValueError(
            f"{label}: this is no picture, or a damaged one; give a PNG or JPEG"
        ) from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"{label}: it has too many pixels; {SMALLER}") from error
    except MemoryError as error:
        raise ValueError(f"{label}: there is no memory for it; scale it down") from error
    except Exception as error:  # each format's decoder fails in ways of its own
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ValueError(
            f"{label}: the picture is damaged or cannot be read ({reason}); get it anew"
        ) from error


def _check_size(size: tuple[int, int]) -> None:
    if not all(size):
        raise _Unfit(f"it has no pixels ({size[0]} x {size[1]}); give another")
    if size[0] * size[1] > MOST_PIXELS:
        raise _Unfit(f"{size[0]} x {size[1]} are too many pixels; {SMALLER}")


def _rgb(picture: Picture) -> Picture:
    from PIL import Image, ImageOps

    _check_size(picture.size)  # before anything is decoded
    picture.load()
    upright = ImageOps.exif_transpose(picture)
    mode = upright.mode
    if mode in ("I", "F") or mode.startswith("I;16"):
        return Image.fromarray(_eight_bits(picture, upright)).convert("RGB")
    if mode in PREMULTIPLIED:
        upright = upright.convert(PREMULTIPLIED[mode])
    elif mode not in PLAIN + WITH_ALPHA:
        raise _Unfit(f"a picture in mode {mode} cannot be converted here; save it as RGB")
    if upright.mode in WITH_ALPHA or (
        upright.has_transparency_data and upright.mode in ("1", "L", "P", "RGB")
    ):
        rgba = upright.convert("RGBA")  # transparent parts are shown on white, as on a page
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return upright.convert("RGB")


def _eight_bits(source: Picture, upright: Picture) -> np.ndarray:
    """The grey values, uint8, of a picture with more bits than that; `source` knows its file."""
    values = np.asarray(upright)
    least, most = values.min(), values.max()
    tags = getattr(source, "tag_v2", {})
    if upright.mode == "F":
        if not (least >= 0 and most <= 1):  # with NaN nothing holds
            raise _Unfit(f"its floats run from {least:g} to {most:g}, not from 0 to 1; {DEPTH}")
        grey = np.rint(255 * values)
    else:
        clear = upright.mode != "I" or source.format in SIXTEEN_BITS or most > 255 or most == 0
        if not (clear and least >= 0 and most <= 65535):
            raise _Unfit(
                f"its 32-bit integers run from {least} to {most}, so white is unknown; {DEPTH}"
            )
        full = 4095 if tags.get(BITS_PER_SAMPLE) == (12,) else 65535
        grey = (255 * values.astype(np.uint32) + full // 2) // full
    if tags.get(PHOTOMETRIC) == 0:  # white is zero, which Pillow minds in 8 bits only
        grey = 255 - grey
    if source.info.get("transparency") is not None:
        grey = np.where(values == source.info["transparency"], 255, grey)
    return grey.astype(np.uint8)
