"""Frames of a video: pictures of policies side by side, with labels and what they have earned.

In: a `Film` and labels.  Out: images of one size; an mp4 (h264) or GIF of them, as bytes.
"""

import io
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import cache
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from tipl.errors import TiplError
from tipl.pictures.episodes import Film, View
from tipl.pictures.shown import Shown

_PAD, _HEAD, _FOOT, _NOTE = 8, 46, 28, 24  # pixels: between panels, over and under each, under all
_INK, _SOFT, _GROUND = "#111827", "#4b5563", "#ffffff"
_HOLD = 1.5  # seconds that the last frame stays
_COLORS, _WHITE = 128, 248  # of a GIF
_OVER = 0.45  # how much of an image is left when its episode is over


def composed(film: Film, shown: Sequence[Shown], second_lines: Sequence[str], note: str) -> Iterator[Image.Image]:
    """Yield the frames.

    Args:
        second_lines: under each label.
        note: under all.
    """
    images = [view.image for view in film.frames[0]]
    width, height = max(image.width for image in images), max(image.height for image in images)
    size = _even(len(shown) * (width + _PAD) + _PAD), _even(_HEAD + height + _FOOT + _NOTE)
    ground = Image.new("RGB", size, _GROUND)
    draw = ImageDraw.Draw(ground)
    lefts = [_PAD + n * (width + _PAD) for n in range(len(shown))]
    for left, each, second in zip(lefts, shown, second_lines, strict=True):
        draw.rectangle((left, 4, left + width - 1, 7), fill=each.color)
        _write(draw, (left, 11), each.label, 14, _INK, width, bold=True)
        _write(draw, (left, 29), second, 11, _SOFT, width)
    _write(draw, (_PAD, size[1] - _NOTE + 4), note, 11, _SOFT, size[0] - 2 * _PAD)
    for views in film.frames:
        frame = ground.copy()
        draw = ImageDraw.Draw(frame)
        for left, view in zip(lefts, views, strict=True):
            image = (
                Image.blend(Image.new("RGB", view.image.size, _GROUND), view.image, _OVER) if view.over else view.image
            )
            frame.paste(image, (left + (width - image.width) // 2, _HEAD + (height - image.height) // 2))
            _write(draw, (left, _HEAD + height + 5), _earned(view), 14, _INK, width)
        yield frame


def _earned(view: View) -> str:
    return f"return {amount(view.earned)}   {'ended at step' if view.over else 'step'} {view.step:,}"


def amount(value: float) -> str:
    """A return in few letters: no decimals where it is whole or large."""
    return f"{value:,.{0 if value == round(value) or abs(value) >= 100 else 1}f}".replace("-", "−")


def _even(pixels: int) -> int:
    return pixels + pixels % 2  # h264 halves the colors' resolution


def _write(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int, color: str, width: int, bold: bool = False
) -> None:
    """A line of text, smaller where there is no room."""
    font = _font(size, bold)
    while size > 7 and draw.textlength(text, font=font) > width:
        size -= 1
        font = _font(size, bold)
    draw.text(at, text, fill=color, font=font)


@cache
def _font(size: int, bold: bool) -> Any:
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/{name}", size)


def as_gif(frames: Sequence[Image.Image], fps: float) -> bytes:
    """A GIF of one palette, whose last frame stays for a while."""
    some = [frames[n * (len(frames) - 1) // 4] for n in range(5)]
    width, height = frames[0].size
    samples = Image.new("RGB", (width, len(some) * height))
    for n, frame in enumerate(some):
        samples.paste(frame, (0, n * height))
    palette = samples.quantize(_COLORS)
    colors = palette.getpalette() or []
    palette.putpalette([255 if each >= _WHITE else each for each in colors])  # Pillow rounds to six bits
    first, *others = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    each = max(20, round(1000 / fps))  # milliseconds; viewers show less than 20 as 100
    durations = [each] * len(others) + [round(1000 * _HOLD)]
    made = io.BytesIO()
    first.save(made, format="GIF", save_all=True, append_images=others, duration=durations, loop=0, optimize=True)
    return made.getvalue()


def as_mp4(frames: Sequence[Image.Image], fps: float) -> bytes:
    """An mp4 (h264, 4:2:0, which every browser plays), whose last frame stays for a while.

    Raises:
        TiplError: PyAV, an optional extra, is not installed.
    """
    av = require_av()
    made = io.BytesIO()
    rate = Fraction(fps).limit_denominator(1001)
    with av.open(made, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "20", "preset": "medium", "threads": "1"})
        stream.width, stream.height = frames[0].size
        stream.pix_fmt = "yuv420p"
        for frame in [*frames, *[frames[-1]] * round(_HOLD * fps)]:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode(None))
    return made.getvalue()


def require_av() -> Any:
    """Return PyAV.

    Raises:
        TiplError: it is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise TiplError(f"An mp4 takes PyAV ({error}): pip install 'tipl[video]', or give a .gif.") from error
    return av
