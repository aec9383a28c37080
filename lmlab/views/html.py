"""HTML that stands on its own: escaping, elements, tables, and `View`, what a notebook shows.

No script and no outside resource, so that a cell's output can be saved, copied and shown anywhere.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lmlab import words
from lmlab.views.theme import STYLE

CONTROL = {code: "\ufffd" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}


class View:
    """Something to look at: a notebook shows `html`, everything else `text`."""

    def __init__(self, html: str, text: str) -> None:
        self.html, self.text = html, text

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return self.text


def escape(value: Any) -> str:
    """Any value as what HTML and SVG take for text, between tags and in quotes. Control characters become a mark."""
    shown = str(value).translate(CONTROL).encode("utf-8", "replace").decode("utf-8")
    return html.escape(shown, quote=True)


def page(*parts: str, wide: bool = False) -> str:
    """A piece of HTML to show: the style sheet, then the parts in a frame of their own. wide: for tables."""
    return STYLE + element("div", "".join(parts), "lmlab lm-wide" if wide else "lmlab")


def element(tag: str, content: str = "", css: str = "", **attributes: Any) -> str:
    """An element around `content`, which is HTML; attribute values are escaped here, None ones left out."""
    given = {"class": css or None, **attributes}
    listed = "".join(f' {name}="{escape(value)}"' for name, value in given.items() if value is not None)
    return f"<{tag}{listed}>{content}</{tag}>"


def fact(name: str, value: str, note: str | None = None, css: str = "") -> str:
    """One named value of a card. value: text; note: shown on hover."""
    shown = element("div", escape(value), f"lm-value {css}".strip())
    return element("div", element("div", escape(name), "lm-name") + shown, "lm-fact", title=note)


def head(text: str) -> str:
    """A small heading."""
    return element("div", escape(text), "lm-head")


def quote(text: str, prompt: str = "") -> str:
    """A model's text in a box, the prompt it goes on from in bold where it begins with it."""
    if prompt and text.startswith(prompt):
        return element("div", element("b", escape(prompt)) + escape(text[len(prompt) :]), "lm-text")
    return element("div", escape(text), "lm-text")


def bar(share: float) -> str:
    """A progress bar, full at 1."""
    percent = min(max(share if share == share else 0.0, 0.0), 1.0) * 100
    return element("div", element("div", style=f"width:{percent:.1f}%"), "lm-bar")


def table(columns: Mapping[str, str], rows: Iterable[Mapping[str, str]], numbers: Sequence[str] = ()) -> str:
    """A table. columns: key to heading; rows: key to a cell's HTML; numbers: the keys set flush right."""

    def cell(tag: str, key: str, content: str) -> str:
        return element(tag, content, "lm-num" if key in numbers else "")

    headings = "".join(cell("th", key, escape(title)) for key, title in columns.items())
    body = "".join(element("tr", "".join(cell("td", key, row.get(key, words.DASH)) for key in columns)) for row in rows)
    inner = element("thead", element("tr", headings)) + element("tbody", body)
    return element("div", element("table", inner, "lm-table"), "lm-scroll")
