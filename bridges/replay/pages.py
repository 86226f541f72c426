"""One HTML page that needs nothing else: no network, no script, no fonts. Every text is escaped here, and only here.

What a page shows comes from a wire. Elements take texts and other elements; a text is never taken for HTML, and a
policy in the head forbids everything but this one style sheet, should that ever fail.
"""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from bridges.replay.words import count, printable

STYLE: Final = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1c2126; --soft: #59636e; --line: #d8dde2;
  --tint: #f5f7f9; --good: #17663a; --good-tint: #eaf5ee; --bad: #a8231c; --bad-tint: #fcecea; --open: #7d5200;
  --open-tint: #fcf3df; }
@media (prefers-color-scheme: dark) { :root { --paper: #14181c; --ink: #e3e7ea; --soft: #98a3ad; --line: #323a42;
  --tint: #1c2126; --good: #7fd1a0; --good-tint: #16281e; --bad: #f39a92; --bad-tint: #321c1b; --open: #e6bd6a;
  --open-tint: #2d2515; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 84rem; padding: 1.5rem 1.25rem 3rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.35rem; margin: 0 0 .25rem; } h2 { font-size: 1.1rem; margin: 2.25rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 .4rem; } p { margin: .4rem 0; } ul { margin: .4rem 0; padding-left: 1.2rem; }
code { font: .9em/1.45 ui-monospace, "DejaVu Sans Mono", Menlo, monospace; white-space: pre-wrap; }
.soft { color: var(--soft); font-weight: 400; } .good { color: var(--good); }
.bad { color: var(--bad); } .open { color: var(--open); }
.verdict { margin: 1rem 0 1.5rem; padding: .9rem 1.1rem; border: 1px solid currentColor; border-left-width: .5rem;
  border-radius: .35rem; } .verdict > * { color: var(--ink); }
.verdict.good { background: var(--good-tint); } .verdict.bad { background: var(--bad-tint); }
.verdict.open { background: var(--open-tint); }
.verdict .word { font-size: 1.5rem; font-weight: 700; line-height: 1.2; margin: 0; color: inherit; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.25rem; margin: .5rem 0; }
div.soft { font-size: .92em; } dt { color: var(--soft); } dd { margin: 0; }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; margin: .5rem 0; }
caption { text-align: left; color: var(--soft); padding: 0 0 .4rem; }
th, td { text-align: left; vertical-align: top; padding: .35rem .5rem; border-bottom: 1px solid var(--line); }
thead th { font-weight: 600; color: var(--soft); border-bottom-width: 2px; vertical-align: bottom; }
th, td { overflow-wrap: break-word; } th code, td code { overflow-wrap: anywhere; }
tbody th { font-weight: 400; min-width: 11rem; } th:first-child { padding-left: 0; }
th.number, td.number { text-align: right; font-variant-numeric: tabular-nums; }
td.number { white-space: nowrap; } tbody tr:hover { background: var(--tint); }
@media screen and (max-width: 74rem) {
  body { padding: 1rem .8rem 2rem; }
  table, caption, tbody, tr, th[scope=row], td { display: block; width: auto; min-width: 0; } thead { display: none; }
  tr { border: 1px solid var(--line); border-radius: .35rem; margin: .6rem 0; padding: .4rem .7rem; }
  th, td, td.number { border: 0; padding: .1rem 0; text-align: left; white-space: normal; }
  td { display: grid; grid-template-columns: 8.5rem 1fr; gap: .6rem; }
  td::before { content: attr(data-label); color: var(--soft); } td.none { display: none; }
}
@page { size: landscape; margin: 12mm; }
@media print { body { max-width: none; padding: 0; font-size: 9pt; } tr, .verdict { break-inside: avoid; }
  h2, h3 { break-after: avoid; } .wide { overflow: visible; } tbody th { min-width: 8rem; } }
"""

_POLICY: Final = (
    "default-src 'none'; base-uri 'none'; form-action 'none'; "
    f"style-src 'sha256-{base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()}'"
)


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


Content = str | Markup


class Column(NamedTuple):
    """A column of a table; `is_number`: its cells are set to the right."""

    label: str
    is_number: bool


def texts(*labels: str) -> tuple[Column, ...]:
    return tuple(Column(label, is_number=False) for label in labels)


def numbers(*labels: str) -> tuple[Column, ...]:
    return tuple(Column(label, is_number=True) for label in labels)


def element(name: str, *children: Content, **attributes: str) -> Markup:
    """An element. `class_` and `data_label` are the attributes class and data-label."""
    head = "".join(f' {key.rstrip("_").replace("_", "-")}="{_escaped(value)}"' for key, value in attributes.items())
    return Markup(f"<{name}{head}>{joined(*children)}</{name}>")


def joined(*children: Content) -> Markup:
    return Markup("".join(child if isinstance(child, Markup) else _escaped(child) for child in children))


def section(heading: str, *children: Content) -> Markup:
    return element("section", element("h2", heading), *children)


def bullets(items: Iterable[Content]) -> Markup:
    return element("ul", *(element("li", item) for item in items))


def facts(pairs: Iterable[tuple[str, Content]]) -> Markup:
    """Names and values; a value that is empty is left out with its name."""
    return element("dl", *(joined(element("dt", name), element("dd", value)) for name, value in pairs if value))


def code(text: str) -> Markup:
    return element("code", text)


def number(value: int, look: str = "") -> Markup:
    """A count; one that is not 0 may have a look: `good`, `bad` or `open`."""
    if not value:
        return ZERO
    return element("span", count(value), **({"class_": look} if look else {}))


def table(caption: str, columns: Sequence[Column], rows: Iterable[Iterable[Content]]) -> Markup:
    """A table whose first column heads its rows.

    On a narrow page every row is a block of its cells with their labels, but for those that are empty or 0.
    """
    heads = (element("th", c.label, scope="col", **({"class_": "number"} if c.is_number else {})) for c in columns)
    whole = element(
        "table",
        element("caption", caption) if caption else Markup(),
        element("thead", element("tr", *heads)),
        element("tbody", *(_row(columns, row) for row in rows)),
    )
    return element("div", whole, class_="wide")


def page(title: str, verdict: Markup, *body: Content) -> str:
    """The whole page."""
    head = joined(
        Markup('<meta charset="utf-8">'),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'),
        Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Markup('<meta name="referrer" content="no-referrer">'),
        element("title", title),
        Markup(f"<style>{STYLE}</style>"),
    )
    whole = element("html", element("head", head), element("body", element("main", verdict, *body)), lang="en")
    return f"<!DOCTYPE html>\n{whole}\n"


def verdict_box(look: str, word: str, reasons: Iterable[str]) -> Markup:
    """What came of it, in a sign, a word and a colour: `good`, `bad` or `open`."""
    sign = {"good": "✓", "bad": "✗", "open": "?"}[look]
    return element("div", element("p", f"{sign} {word}", class_="word"), bullets(reasons), class_=f"verdict {look}")


def _row(columns: Sequence[Column], row: Iterable[Content]) -> Markup:
    first, *others = row
    cells = [element("th", first, scope="row")]
    for column, cell in zip(columns[1:], others, strict=True):
        names = [name for name, has in (("number", column.is_number), ("none", cell in ("", ZERO))) if has]
        cells.append(element("td", cell, data_label=column.label, **({"class_": " ".join(names)} if names else {})))
    return element("tr", *cells)


def _escaped(text: str) -> str:
    return html.escape(printable(text))


ZERO: Final = element("span", "0", class_="soft")
