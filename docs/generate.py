"""Tables of the documentation that are computed from the code."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

from metamtl import aggregators

PAPER = re.compile(
    r"https?://(?:arxiv\.org/(?:abs|pdf)/[\w.]+|openreview\.net/[\w.?=&-]+|doi\.org/[^\s)>\]]+)"
)
TESTS = Path(__file__).resolve().parents[1] / "tests" / "laws" / "test_aggregator_claims.py"
# For arguments without a default, with three tasks.
ARGUMENTS = {
    "alpha": 1.0,
    "c": 0.5,
    "calls_per_epoch": 10,
    "lambda_": 1.0,
    "mu": 0.1,
    "n_byzantine": 1,
    "num_tasks": 3,
    "rate": 0.1,
    "shape": 3,
    "theta": 1.0,
    "trim_number": 1,
    "weights": [1.0, 1.0, 1.0],
}
LAWS = {
    "order": "order",
    "turn": "rotation",
    "scale": "scale",
    "span": "span",
    "hull": "hull",
    "agree": "no conflict",
    "free": "no conflict (independent)",
    "linear": "linear",
}


def claims() -> dict[str, str]:
    """The laws that the tests check, for each aggregator."""
    for node in ast.parse(TESTS.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == "CLAIMS" and node.value:
            return dict(ast.literal_eval(node.value))
    raise LookupError(f"{TESTS} has no table CLAIMS.")


def aggregator_table() -> str:
    """One row per aggregator: constructor, what it reads, scale, laws and paper."""
    rows = ["| constructor | reads | scale | laws | paper |", "|---|---|---|---|---|"]
    laws = claims()
    for name in aggregators.names():
        cls = getattr(aggregators, name)
        parameters = inspect.signature(cls).parameters.values()
        required = {p.name: ARGUMENTS[p.name] for p in parameters if p.default is inspect.Parameter.empty}
        if name in ("COSMOS", "PBI"):
            import torch

            required["weights"] = torch.ones(3)
        aggregator = cls(**required)
        paper = PAPER.search(cls.__doc__ or "")
        link = f"[paper]({paper.group(0).rstrip('.,')})" if paper else ""
        held = ", ".join(LAWS[law] for law in laws[name].split())
        call = ", ".join(_argument(parameter) for parameter in parameters)
        rows.append(f"| `{name}({call})` | {aggregator.reads} | {aggregator.scale} | {held} | {link} |")
    return "\n".join(rows)


def _argument(parameter: inspect.Parameter) -> str:
    if parameter.default is inspect.Parameter.empty:
        return parameter.name
    text = repr(parameter.default)
    return f"{parameter.name}={text if len(text) < 30 and ' at 0x' not in text else '...'}"
