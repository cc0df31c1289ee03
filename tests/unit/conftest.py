"""The devices that there are, the same tests run on each; and what a graph keeps alive."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor


@pytest.fixture(params=["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(scope="session")
def stored() -> Callable[[Mapping[str, Tensor]], int]:
    """`stored(params)`: the bytes that the graph behind them keeps."""

    def count(params: Mapping[str, Tensor]) -> int:
        todo, visited, seen = [param.grad_fn for param in params.values()], set(), {}
        while todo:
            node = todo.pop()
            if node is None or node in visited:
                continue
            visited.add(node)
            for tensor in getattr(node, "saved_tensors", ()):
                seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            todo += [parent for parent, _ in node.next_functions]
        return sum(seen.values())

    return count
