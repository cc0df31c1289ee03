"""Figures can be read."""

from __future__ import annotations

from itertools import pairwise

import pytest

from metamtl.analysis.result import bars


@pytest.mark.parametrize("largest", [1.3e-7, 1.3e-3, 0.13, 1.3, 130.0, 1.3e6])
def test_the_labels_of_bars_do_not_overlap(largest: float) -> None:
    figure = bars(None, ("a", "b", "c"), [largest, -largest / 3, largest / 7], "", [largest / 9] * 3)
    figure.canvas.draw()
    boxes = [label.get_window_extent() for label in figure.axes[0].get_xticklabels() if label.get_text()]
    boxes = sorted(boxes, key=lambda box: box.x0)
    assert len(boxes) > 2 and all(left.x1 < right.x0 for left, right in pairwise(boxes))
