"""The nearest known name, for error messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def hint(name: str, known: Iterable[str]) -> str:
    """`did you mean 'steps'?`, or all known names if none is near."""
    names = [str(entry) for entry in known]
    near = difflib.get_close_matches(name, names, 1)
    # A name that another one begins or ends with is near, too: `acc` and `accuracy`.
    near = near or [entry for entry in names if len(name) > 1 and (name in entry or entry in name)][:1]
    if near:
        return f"did you mean {near[0]!r}?"
    return f"there are {', '.join(names)}." if names else "there are none."
