"""Pictures that leave the report: the flickering GIF of a pair, and the figure of one counterfactual."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from stylex.errors import DataError
from stylex.report.content import CounterfactualExample, Picture
from stylex.report.pictures import as_image, enlarge
from stylex.run import write_atomically

_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_PAPER, _INK, _QUIET, _LINE, _STRONG = "#ffffff", "#1c1e22", "#666a71", "#d6d2c8", "#0b6a70"
_NO_GLYPH = "\uffff"
_FASTEST_MS = 334


def write_gif(
    path: Path,
    before: Picture,
    after: Picture,
    *,
    scale: int = 1,
    captions: tuple[str, str] | None = None,
    frame_ms: int = 900,
) -> None:
    """Write an endless GIF that flickers between two pictures.

    Both frames share one palette and nothing is dithered, so what is equal in the pictures is equal in the
    frames and only the change moves. Up to 256 colours are kept exactly.

    Args:
        before, after: uint8 [H, W, 3], of one size.
        scale: whole factor by which the pictures are enlarged.
        captions: what stands in a strip under the one and the other.
        frame_ms: how long each is shown; under 334 it would flash more than three times a second.

    Raises:
        DataError: pictures of different sizes, a scale under 1, or flashes that are too fast.
        RunError: the file cannot be written.
    """
    if before.shape != after.shape:
        raise DataError(f"a GIF needs two pictures of one size, not {before.shape} and {after.shape}")
    if scale < 1:
        raise DataError(f"a GIF cannot be scaled by {scale}; use 1 or more")
    if frame_ms < _FASTEST_MS:
        raise DataError(f"{frame_ms} ms a frame flash more than 3 times a second; use {_FASTEST_MS} or more")
    frames = [enlarge(as_image(picture), scale * max(picture.shape[:2])) for picture in (before, after)]
    if captions is not None:
        size = max(11, round(frames[0].width / 12))
        font = _font(" ".join(captions), size)
        frames = [_captioned(frame, text, font, size) for frame, text in zip(frames, captions, strict=True)]
    first, second = _with_one_palette(frames[0], frames[1])
    write_atomically(
        path,
        lambda file: first.save(
            file, "GIF", save_all=True, append_images=[second], duration=frame_ms, loop=0, optimize=False
        ),
    )


def counterfactual_figure(
    example: CounterfactualExample, target: str, *, side: int = 256, headline: str | None = None
) -> Image.Image:
    """Draw image, reconstruction and counterfactual, the target's probability on each, the changes in words.

    Args:
        target: name of the class that the image was to be sent to.
        side: width of each of the three pictures, in pixels.
        headline: what stands on top, in place of what a search would say.

    Returns:
        An RGB image on white, as high as its words need.

    Raises:
        DataError: a picture that is not uint8 [H, W, 3].
    """
    columns = (
        ("image", example.original, example.probability_original),
        ("reconstruction", example.reconstruction, example.probability_before),
        ("counterfactual", example.counterfactual, example.probability_after),
    )
    panels = [_as_wide_as(side, picture) for _, picture, _ in columns]
    margin, gap, line = (round(side * share) for share in (0.12, 0.08, 0.095))
    width = 2 * margin + 3 * side + 2 * gap
    headline = headline or _headline(example, target)
    everything = " ".join((headline, target, *example.changes))
    title, text = (_font(everything, round(side * share)) for share in (0.088, 0.062))
    head = _wrapped(headline, title, width - 2 * margin)
    changes = [_wrapped(change, text, width - 2 * margin - gap) for change in example.changes]

    top = margin + round(1.35 * line * len(head)) + round(1.5 * line)
    foot = top + max(panel.height for panel in panels)
    height = foot + round(2.1 * line) + margin
    if changes:
        height += line + line * sum(len(lines) for lines in changes)
    image = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(image)

    for number, words in enumerate(head):
        draw.text((margin, margin + round(1.35 * line * number)), words, _INK, font=title)
    for number, (panel, (name, _, value)) in enumerate(zip(panels, columns, strict=True)):
        left = margin + number * (side + gap)
        color = _STRONG if number == 2 and example.flipped else _INK
        draw.text((left, top - line), name, _QUIET, font=text)
        image.paste(panel, (left, top))
        _draw_probability(draw, (left, foot + line // 2), side, f"P({target})", value, color, text)
    y = foot + round(2.4 * line)
    if changes:
        draw.text((margin, y), "What was changed", _QUIET, font=text)
        y += line
    for lines in changes:
        radius, middle = side // 100 + 1, y + 0.42 * line
        draw.ellipse((margin, middle - radius, margin + 2 * radius, middle + radius), fill=_STRONG)
        for words in lines:
            draw.text((margin + gap // 1.5, y), words, _INK, font=text)
            y += line
    return image


def _headline(example: CounterfactualExample, target: str) -> str:
    if not example.flipped:
        return f"Nothing that was found makes it count as {target}"
    if not example.changes:
        return f"It counts as {target} without any change"
    count = len(example.changes)
    return f"{count} change{'s' if count > 1 else ''} make{'' if count > 1 else 's'} it count as {target}"


def _draw_probability(
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    width: int,
    label: str,
    value: float,
    color: str,
    font: _Font,
) -> None:
    """The label at the left, the value at the right, a bar below."""
    left, y = corner
    figure = f"{value:.2f}"
    at = left + width - draw.textlength(figure, font)
    for words in _wrapped(label, font, width - draw.textlength(figure + "  ", font))[:1]:
        draw.text((left, y), words, _QUIET, font=font)
    draw.text((at, y), figure, color, font=font)
    top, thickness = y + round(width * 0.095), max(2, width // 64)
    filled = round(width * min(1.0, max(0.0, value)))
    draw.rectangle((left, top, left + width - 1, top + thickness - 1), fill=_LINE)
    if filled:
        draw.rectangle((left, top, left + filled - 1, top + thickness - 1), fill=color)


def _as_wide_as(width: int, picture: Picture) -> Image.Image:
    image = as_image(picture)
    size = (width, max(1, round(image.height * width / image.width)))
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)


def _captioned(frame: Image.Image, text: str, font: _Font, size: int) -> Image.Image:
    """The frame with a white strip below it that holds as much of the text as one line can."""
    strip = Image.new("RGB", (frame.width, frame.height + round(size * 1.7)), _PAPER)
    strip.paste(frame, (0, 0))
    words = _wrapped(text, font, frame.width - size)[0]
    at = (round(size * 0.5), frame.height + round(size * 0.25))
    ImageDraw.Draw(strip).text(at, words, _INK, font=font)
    return strip


def _with_one_palette(first: Image.Image, second: Image.Image) -> tuple[Image.Image, Image.Image]:
    """Both RGB images in the palette that suits them together; Pillow dithers only into a given palette."""
    both = Image.new("RGB", (first.width, 2 * first.height))
    both.paste(first, (0, 0))
    both.paste(second, (0, first.height))
    joint = both.quantize(256, Image.Quantize.MEDIANCUT, kmeans=2)
    half = (0, 0, first.width, first.height)
    other = (0, first.height, first.width, 2 * first.height)
    return joint.crop(half), joint.crop(other)


def _font(text: str, size: int) -> _Font:
    """Pillow's own font; matplotlib's DejaVu Sans where the text has letters that Pillow's has not."""
    font: _Font = ImageFont.load_default(size)
    if isinstance(font, ImageFont.FreeTypeFont) and any(_is_missing(letter) for letter in set(text)):
        wider = _dejavu()
        if wider is not None:
            return ImageFont.truetype(wider, size)
    return font


@cache
def _is_missing(letter: str) -> bool:
    """Whether Pillow's font would draw a box for this letter."""
    font = ImageFont.load_default(16)
    return not letter.isspace() and bytes(font.getmask(letter)) == bytes(font.getmask(_NO_GLYPH))


@cache
def _dejavu() -> str | None:
    found = find_spec("matplotlib")
    if found is None or found.origin is None:
        return None
    file = Path(found.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
    return str(file) if file.is_file() else None


def _wrapped(text: str, font: _Font, width: float) -> list[str]:
    """The text in lines no wider than `width`; a word that is wider is broken. At least one line."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".lstrip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines
