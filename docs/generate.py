"""Tables of the documentation that are computed from the code."""

from __future__ import annotations

import inspect
import re

from metamtl import aggregators

PAPER = re.compile(r"https?://(?:arxiv\.org/(?:abs|pdf)/[\w.]+|openreview\.net/[\w.?=&-]+|doi\.org/[^\s)>\]]+)")


def aggregator_table() -> str:
    """One row per aggregator: constructor, what it reads, scale, and paper."""
    rows = ["| constructor | reads | state | paper |", "|---|---|---|---|"]
    for name in aggregators.names():
        cls = getattr(aggregators, name)
        signature = ", ".join(
            parameter.name
            if parameter.default is inspect.Parameter.empty
            else f"{parameter.name}={_short(parameter.default)}"
            for parameter in inspect.signature(cls).parameters.values()
        )
        paper = PAPER.search(cls.__doc__ or "")
        link = f"[paper]({paper.group(0).rstrip('.,')})" if paper else ""
        state = "per task" if cls.state_names else ""
        rows.append(f"| `{name}({signature})` | {cls.reads} | {state} | {link} |")
    return "\n".join(rows)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 30 and " at 0x" not in text else "..."
