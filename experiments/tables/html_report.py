"""One HTML page of sections with statements and figures: no script, no network, light and dark."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from typing import Any, NamedTuple

from metamtl import Estimate

_INK = "#010203"  # text and axes of a figure; replaced by the color of the page's text


class Statement(NamedTuple):
    """A sentence with its value; without a value, a fact that was not estimated."""

    text: str
    value: Estimate | None = None

    def __str__(self) -> str:
        return self.text if self.value is None else f"{self.text}: {interval(self.value)}"

    def as_dict(self) -> dict[str, Any]:
        """For a result file."""
        value = {"mean": None, "ci95": None, "n": None}
        if self.value is not None:
            value |= {"mean": self.value.mean, "ci95": self.value.ci95, "n": self.value.n}
        return {"text": self.text, **value}


class Picture(NamedTuple):
    """A figure of matplotlib and its caption."""

    caption: str
    figure: Any


@dataclass
class Section:
    """A part of the page.

    Attributes:
        title: a few words.
        statements: what was found, each with its interval.
        pictures: the figures.
        advice: what to try next, each with its reason.
        notes: limits, and what was left out.
    """

    title: str
    statements: list[Statement] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For a result file, without the figures."""
        return {
            "title": self.title,
            "statements": [statement.as_dict() for statement in self.statements],
            "advice": self.advice,
            "notes": self.notes,
        }


def interval(value: Estimate, *, digits: int = 3) -> str:
    """`0.125 ± 0.01 (n=5)`, with significant digits; without the interval if it is not defined.

    >>> import torch
    >>> interval(Estimate.of(torch.tensor([1.0, 2.0, 3.0])))
    '2 ± 2.5 (n=3)'
    """
    spread = f" ± {value.ci95:.2g}" if math.isfinite(value.ci95) else ""
    return f"{value.mean:.{digits}g}{spread} (n={value.n})"


@contextmanager
def figure_style() -> Iterator[None]:
    """Figures that are drawn within this context fit a phone and take the colors of the page.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib import rc_context
    except ImportError as error:
        raise ImportError(
            f"the figures of the report need matplotlib, which cannot be imported ({error}); pip install"
            " 'metamtl[analysis]'."
        ) from error
    ink = (
        "text.color",
        "axes.edgecolor",
        "axes.labelcolor",
        "axes.titlecolor",
        "xtick.color",
        "ytick.color",
    )
    options = {
        **dict.fromkeys(ink, _INK),
        "axes.facecolor": "none",
        "figure.facecolor": "none",
        "figure.figsize": (4.8, 3.6),
        "font.size": 10,
        "legend.framealpha": 0.0,
        "svg.fonttype": "none",  # text remains text
        "svg.hashsalt": "metamtl",  # the same bytes each time
        "text.parse_math": False,  # a name of a task may have dollar signs
    }
    with rc_context(options):  # type: ignore[arg-type]
        yield


def svg(picture: Picture, number: int) -> str:
    """The figure as an SVG element for HTML, with ids that are unique in the page."""
    buffer = io.StringIO()
    picture.figure.savefig(buffer, format="svg")
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for pattern in (r"<metadata>.*?</metadata>", r"<!--.*?-->"):
        text = re.sub(pattern, "", text, flags=re.DOTALL)
    head, rest = text.split(">", 1)
    box = re.search(r'viewBox="[-\d. ]+"', head)
    assert box is not None
    rest = re.sub(r' id="', f' id="f{number}-', rest)
    rest = re.sub(r"url\(#", f"url(#f{number}-", rest)
    rest = re.sub(r'href="#', f'href="#f{number}-', rest)
    rest = rest.replace(_INK, "currentColor").replace("#000000", "currentColor")
    return f'<svg {box[0]} role="img" aria-label="{escape(picture.caption)}">{rest}'


_CSS = """
:root { color-scheme: light dark;
  --ink: #1c1f23; --soft: #59616b; --line: #d5dae0; --page: #fff; --card: #f4f6f8 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --soft: #a3acb6; --line: #3a4149; --page: #15181c; --card: #1e2329 }
}
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1rem; max-width: 46rem; background: var(--page); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere }
h1 { font-size: 1.5rem; line-height: 1.2 }
h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; padding-top: 1rem; border-top: 1px solid var(--line) }
ul { padding-left: 1.2rem }
li { margin: .3rem 0 }
b { white-space: nowrap }
nav ul { padding-left: 0; list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1rem }
a { color: inherit }
figure { margin: 1rem 0; padding: .5rem; background: var(--card); border-radius: .5rem }
figure svg { display: block; width: 100%; max-width: 34rem; height: auto; margin: 0 auto }
figcaption, .note, footer { color: var(--soft); font-size: .9rem }
"""


def page(title: str, lead: str, sections: Sequence[Section], footer: str) -> str:
    """The page as text. All texts are escaped; a policy in its head forbids scripts and the network."""
    parts, number = [], 0
    for index, section in enumerate(sections):
        parts.append(f'<section id="s{index}">\n<h2>{escape(section.title)}</h2>')
        parts.append(_list([_statement(statement) for statement in section.statements]))
        for picture in section.pictures:
            number += 1
            caption = f"Figure {number}. {escape(picture.caption)}"
            parts.append(f"<figure>\n{svg(picture, number)}\n<figcaption>{caption}</figcaption>\n</figure>")
        parts += [f'<p class="note">{escape(note)}</p>' for note in section.notes]
        parts.append("</section>")
    links = [f'<a href="#s{index}">{escape(section.title)}</a>' for index, section in enumerate(sections)]
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<link rel="icon" href="data:,">',
            f"<title>{escape(title)}</title>",
            f"<style>{_CSS}</style>",
            "</head>",
            "<body>",
            f"<h1>{escape(title)}</h1>",
            f"<p>{escape(lead)}</p>",
            f"<nav>{_list(links)}</nav>",
            *(part for part in parts if part),
            f"<footer><p>{escape(footer)}</p></footer>",
            "</body>",
            "</html>\n",
        ]
    )


def _statement(statement: Statement) -> str:
    if statement.value is None:
        return escape(statement.text)
    return f"{escape(statement.text)}: <b>{escape(interval(statement.value))}</b>"


def _list(items: Sequence[str]) -> str:
    """A list of items that are HTML already."""
    return "<ul>\n" + "\n".join(f"<li>{item}</li>" for item in items) + "\n</ul>" if items else ""
