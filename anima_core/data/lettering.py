"""Text in pictures: any name in any script, cut to the space there is, with the fonts that a system has."""

from functools import lru_cache

from PIL import ImageDraw, ImageFont

Colour = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

# Pillow brings a Latin font along. These, which systems have, hold Chinese, Japanese and Korean too; found by their name.
WIDE_FONTS = (
    *("msyh.ttc", "YuGothM.ttc", "malgun.ttf"),  # Windows
    *("PingFang.ttc", "Hiragino Sans GB.ttc", "Arial Unicode.ttf"),  # macOS
    *("NotoSansCJK-Regular.ttc", "wqy-microhei.ttc", "wqy-zenhei.ttc", "DroidSansFallbackFull.ttf", "DejaVuSans.ttf"),
)


@lru_cache(maxsize=32)
def font(size: int, wide: bool) -> Font:
    """Return a font for Latin text, or for any, where the system has one."""
    for name in WIDE_FONTS if wide else ():
        try:
            return ImageFont.truetype(name, size)
        except (OSError, ImportError):
            continue
    try:
        return ImageFont.load_default(size)
    except (TypeError, OSError, ImportError):  # a Pillow before 10.1, or one without FreeType
        return ImageFont.load_default()


def write(pen: ImageDraw.ImageDraw, place: tuple[float, float], text: str, size: int, colour: Colour, width: float) -> float:
    """Write one line, cut to a width with an ellipsis; return how wide it is. Characters without a form become `?`."""
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    letters = font(size, not text.isascii())
    if not isinstance(letters, ImageFont.FreeTypeFont):  # it has Latin-1 alone
        text = text.encode("latin-1", "replace").decode("latin-1")
    shown = text
    while shown and pen.textlength(shown, letters) > width:
        text = text[:-1]
        shown = f"{text.rstrip()}..."
    pen.text(place, shown, fill=colour, font=letters)
    return pen.textlength(shown, letters)
