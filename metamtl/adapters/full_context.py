"""Features that depend on the whole support set: the full-context embeddings of Matching Networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..functional import Params


class FullContext(nn.Module):
    """Full-context embeddings of Matching Networks: `Matching(context=FullContext(width))`.

    Vinyals et al. 2016, https://arxiv.org/abs/1606.04080, appendix A. The features `x_1 .. x_S` of the
    support set, in their order, are read by a bidirectional LSTM, `g_i = x_i + forward_i + backward_i`. A
    query feature `x` is then read K times by an LSTM with attention over `g`. From `h_0 = c_0 = 0`,

        r_k = sum_i softmax_i(h_k . g_i) g_i
        u, c_{k+1} = LSTM(x, [h_k, r_k], c_k),   h_{k+1} = u + x,

    and `h_K` replaces it. Each query feature is read by itself, so the method is inductive. The scores
    depend on the order of the support examples, which is by class in episodes of `FewShot`.

    Args:
        width: the number of features F.
        steps: K, how often a query feature is read.

    Raises:
        ValueError: `steps` is less than 1; when called: the features have another width.

    >>> context = FullContext(8, steps=3)
    >>> support, query = torch.randn(5, 8), torch.randn(2, 8)
    >>> params = dict(context.named_parameters())
    >>> context.embed_query(params, context.embed_support(support), query).shape
    torch.Size([2, 8])
    """

    def __init__(self, width: int, steps: int = 5) -> None:
        super().__init__()
        if steps < 1:
            raise ValueError(
                f"steps={steps}: pass the number of times a query feature is read, at least 1."
            )
        self.width, self.steps = width, steps
        # They hold the parameters, with the names and initial values of torch. Their own forward passes are
        # not used, because vmap does not support them.
        self.support = nn.LSTM(width, width, bidirectional=True)
        # An LSTM with input x and state [h, r] is one with input [r, x] and state h.
        self.query = nn.LSTMCell(2 * width, width)

    def extra_repr(self) -> str:
        return f"{self.width}, steps={self.steps}"

    def embed_support(self, features: Tensor) -> Tensor:
        """The embeddings g `[S, F]` of support features `[S, F]`."""
        if features.shape[1] != self.width:
            raise ValueError(
                f"FullContext(width={self.width}), but the features have {features.shape[1]} numbers."
            )
        params: Params = dict(self.support.named_parameters())
        forward = self._read(params, "_l0", list(features))
        backward = self._read(params, "_l0_reverse", list(features)[::-1])[::-1]
        return features + torch.stack(forward) + torch.stack(backward)

    def embed_query(self, params: Params, support: Tensor, features: Tensor) -> Tensor:
        """The embeddings `[Q, F]` of query features `[Q, F]`.

        Args:
            params: the parameters of this module by name.
            support: the result of `embed_support`.
            features: the query features.
        """
        weights = {name: params[f"query.{name}"] for name, _ in self.query.named_parameters()}
        hidden, cell = torch.zeros_like(features), torch.zeros_like(features)
        for _ in range(self.steps):
            attention = torch.softmax(hidden @ support.T, 1)
            output, cell = _lstm(weights, "", torch.cat([attention @ support, features], 1), hidden, cell)
            hidden = output + features
        return hidden

    def _read(self, params: Params, suffix: str, sequence: list[Tensor]) -> list[Tensor]:
        """The outputs of one direction of the LSTM over the support set."""
        outputs: list[Tensor] = []
        hidden = cell = torch.zeros_like(sequence[0])
        for x in sequence:
            hidden, cell = _lstm(params, suffix, x, hidden, cell)
            outputs.append(hidden)
        return outputs


def _lstm(params: Params, suffix: str, x: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """One step of an LSTM with the parameters of torch."""
    gates = nn.functional.linear(x, params[f"weight_ih{suffix}"], params[f"bias_ih{suffix}"])
    gates = gates + nn.functional.linear(hidden, params[f"weight_hh{suffix}"], params[f"bias_hh{suffix}"])
    enter, forget, update, leave = gates.chunk(4, -1)
    cell = torch.sigmoid(forget) * cell + torch.sigmoid(enter) * torch.tanh(update)
    return torch.sigmoid(leave) * torch.tanh(cell), cell
