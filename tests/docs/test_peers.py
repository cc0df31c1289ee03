"""Migration guides: our script prints what the script of the other library printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

MIGRATION = Path(__file__).resolve().parents[2] / "docs" / "migration"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PRINTED = {
    "torchopt": "0.856571\n",  # torchopt 0.7.3
    "torchmeta": "0.675658\n",  # torchmeta 1.8.0
    "easyfsl": "[0, 0, 2, 2]\n[0.37, 0.21, 0.18, 0.11, 0.13]\n",  # easyfsl 1.5.0
    "libmtl": "0.232754\n",  # LibMTL at 4336804
}


@pytest.mark.parametrize("page", PRINTED)
def test_our_script_prints_what_theirs_did(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = (MIGRATION / f"{page}.md").read_text(encoding="utf-8")
    (code,) = BLOCK.findall(text)
    with torch.random.fork_rng():
        exec(compile(code, page, "exec"), {"__name__": "page"})
    assert capsys.readouterr().out == PRINTED[page]
    assert all(f"`{line}`" in text for line in PRINTED[page].splitlines())
