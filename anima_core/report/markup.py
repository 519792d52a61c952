"""HTML that is escaped where it is made: a plain text can only become text, and an attribute only an attribute."""

from collections.abc import Iterable
from html import escape

from ..errors import CONTROL

EMPTY = ("img", "meta", "wbr")


class Html(str):
    """Markup that was made by `tag`; any other text is escaped when it is put into one."""


Content = str | Iterable[str]


def tag(name: str, content: Content = "", /, **attributes: str | int | None) -> Html:
    """Return an element. attributes: `class_` means class, other underscores dashes; those that are None are left out."""
    parts = [content] if isinstance(content, str) else content
    inner = "".join(part if isinstance(part, Html) else text(part) for part in parts)
    given = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items() if value is not None}
    opening = "".join(f' {key}="{text(str(value))}"' for key, value in given.items())
    return Html(f"<{name}{opening}>" if name in EMPTY else f"<{name}{opening}>{inner}</{name}>")


def text(plain: str) -> str:
    """Escape a text. What no page may hold, as half an emoji or a control character, is shown as a replacement."""
    whole = plain.encode(errors="replace").decode()
    return escape(CONTROL.sub(lambda found: found[0] if found[0] == "\n" else "\ufffd", whole))


def table(
    head: Iterable[Content], rows: Iterable[Iterable[Content]], class_: str | None = None, style: str | None = None
) -> Html:
    """Return a table whose first column names its rows; it scrolls by itself where it is too wide."""
    top = tag("tr", [tag("th", cell, scope="col") for cell in head])
    body = [tag("tr", [tag("th", first, scope="row"), *(tag("td", cell) for cell in rest)]) for first, *rest in rows]
    return tag(
        "div", tag("table", [tag("thead", top), tag("tbody", body)], class_=class_, style=style), class_="wide", tabindex=0
    )
