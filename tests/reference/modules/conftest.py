"""Small modules of many kinds, each with what is known of it."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from metamtl import nets

from .cases import (
    CLASSES,
    HOOKED,
    IMAGE,
    IN_PLACE,
    NO_RULE,
    ONCE,
    SEQUENCE,
    UNKNOWN,
    Counting,
    Graph,
    Keywords,
    Of,
    Once,
    Remembers,
    Row,
    Square,
    alias,
    attention,
    bag,
    by_hand,
    called_by_hand,
    checkpointed,
    encoder,
    head,
    hook_normed,
    hook_normed_by_hand,
    hooked,
    image,
    mlp,
    norm_net,
    normed,
    policy,
    pooled,
    real_parts,
    recurrent,
    square,
    tied,
    two_layers,
    weight_normed,
)

ROWS = {
    "linear": Row(lambda: nn.Linear(4, CLASSES)),
    "MLP, ReLU": Row(lambda: mlp(nn.ReLU())),
    "MLP, GELU": Row(lambda: mlp(nn.GELU())),
    "MLP, dropout": Row(lambda: mlp(nn.Dropout(0.5), nn.Tanh()), tasks=1),
    "bilinear form": Row(lambda: Of(lambda m, x: m.form(x, x.sin()), form=nn.Bilinear(4, 4, CLASSES))),
    "weight norm": Row(lambda: normed(parametrizations.weight_norm), forward=weight_normed),
    "weight norm, by a hook": Row(hook_normed, forward=hook_normed_by_hand),
    "torch._weight_norm, called": Row(
        lambda: Of(
            lambda m, x: F.linear(x, torch._weight_norm(m.v.weight, m.g.weight)).tanh(),
            v=nn.Linear(4, CLASSES, bias=False),
            g=nn.Linear(1, CLASSES, bias=False),
        ),
        forward=called_by_hand,
    ),
    "torch.gru_cell, called": Row(
        lambda: Of(
            lambda m, x: torch.gru_cell(x, x[:, :3], m.x.weight, m.h.weight, m.x.bias, m.h.bias),
            x=nn.Linear(4, 9),
            h=nn.Linear(3, 9),
        )
    ),
    "F.embedding_bag, called": Row(
        lambda: Of(
            lambda m, x: m.head(F.embedding_bag(x, m.table.weight)), table=nn.Embedding(7, 4), head=head()
        ),
        "tokens",
        lambda model, params, x, k, support: F.linear(
            F.embedding(x, params["table.weight"]).mean(1), params["head.weight"], params["head.bias"]
        ),
    ),
    "torch.batch_norm, called": Row(
        lambda: Of(
            lambda m, x: torch.batch_norm(m.layer(x), None, None, None, None, True, 0.1, 1e-5, False),
            layer=nn.Linear(4, CLASSES),
        )
    ),
    "complex weights": Row(lambda: Of(real_parts, layer=nn.Linear(4, CLASSES, dtype=torch.complex128))),
    "spectral norm, training": Row(lambda: normed(parametrizations.spectral_norm), refusal=IN_PLACE),
    "spectral norm, eval": Row(lambda: normed(parametrizations.spectral_norm), training=False),
    "orthogonal parametrization": Row(lambda: normed(parametrizations.orthogonal)),
    "tied parameters": Row(tied),
    "a layer under two names": Row(alias),
    "frozen body": Row(lambda: nn.Sequential(nn.Linear(4, 6).requires_grad_(False), nn.Tanh(), head(6))),
    "unused parameters": Row(lambda: Of(lambda m, x: m.head(x), spare=nn.Linear(4, 4), head=head())),
    "a counter as a buffer": Row(lambda: Counting(keep=False)),
    "a buffer written from the input": Row(lambda: Counting(keep=True), refusal=IN_PLACE),
    "features stored as an attribute": Row(Remembers),
    "forward and backward hooks": Row(hooked, refusal=NO_RULE),
    "torch.utils.checkpoint": Row(checkpointed, forward=two_layers, refusal=HOOKED),
    "Function without a rule for vmap": Row(
        lambda: Of(lambda m, x: m.head(Square.apply(m.layer(x))), layer=nn.Linear(4, 6), head=head(6)),
        forward=square,
        refusal=NO_RULE,
    ),
    "Function marked once_differentiable": Row(
        lambda: Of(lambda m, x: m.head(Once.apply(m.layer(x))), layer=nn.Linear(4, 6), head=head(6)),
        forward=square,
        refusal=ONCE,
    ),
    "torch.cdist, p=1": Row(
        lambda: Of(lambda m, x: torch.cdist(m.layer(x), m.layer.weight, p=1), layer=nn.Linear(4, 4)),
        refusal=UNKNOWN,
    ),
    "Conv1d": Row(lambda: image(18, nn.Conv1d(2, 3, 3), nn.ReLU()), (2, 8)),
    "Conv2d, stride 2": Row(lambda: image(12, nn.Conv2d(2, 3, 3, stride=2), nn.ReLU()), IMAGE),
    "Conv2d, max-pool": Row(lambda: image(12, nn.Conv2d(2, 3, 3), nn.MaxPool2d(2), nn.ReLU()), IMAGE),
    "Conv2d, depthwise": Row(lambda: image(16, nn.Conv2d(2, 4, 3, groups=2), nn.AvgPool2d(2)), IMAGE),
    "Conv2d, transposed": Row(lambda: image(75, nn.ConvTranspose2d(2, 3, 2), nn.Tanh()), (2, 4, 4)),
    "Conv3d": Row(lambda: image(16, nn.Conv3d(1, 2, 2), nn.Tanh()), (1, 3, 3, 3)),
    "Conv-4": Row(lambda: nets.conv4(CLASSES, hidden=3, size=16), (1, 16, 16)),
    "ResNet-12": Row(lambda: nets.resnet12(CLASSES, channels=1, widths=(2, 2, 3, 3)), (1, 16, 16)),
    "ViT": Row(lambda: nets.vit(CLASSES, size=4, patch=2, width=4, depth=1, heads=2, hidden=6), (3, 4, 4)),
    "BatchNorm, training": Row(norm_net, forward=by_hand("transductive")),
    "BatchNorm, eval": Row(norm_net, forward=by_hand("frozen"), training=False),
    "BatchNorm, transductive": policy("transductive"),
    "BatchNorm, support": policy("support"),
    "BatchNorm, frozen": policy("frozen"),
    "BatchNorm, per_step": policy("per_step"),
    "GroupNorm": Row(lambda: image(64, nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.ReLU()), IMAGE),
    "LayerNorm": Row(lambda: mlp(nn.LayerNorm(6), nn.Tanh())),
    "InstanceNorm": Row(lambda: image(48, nn.Conv2d(2, 3, 3), nn.InstanceNorm2d(3), nn.ReLU()), IMAGE),
    "Embedding, mean": Row(
        lambda: Of(lambda m, x: m.head(m.table(x).mean(1)), table=nn.Embedding(7, 4), head=head()), "tokens"
    ),
    "EmbeddingBag, mean": Row(lambda: pooled("mean"), "tokens", partial(bag, torch.mean)),
    "EmbeddingBag, max": Row(lambda: pooled("max"), "tokens", partial(bag, torch.amax)),
    "LSTM, two layers": Row(lambda: recurrent(nn.LSTM(4, 3, 2, batch_first=True), 3), SEQUENCE),
    "GRU, both directions": Row(lambda: recurrent(nn.GRU(4, 3, bidirectional=True), 6), SEQUENCE),
    "RNN, tanh": Row(lambda: recurrent(nn.RNN(4, 3), 3), SEQUENCE),
    "LSTMCell": Row(lambda: Of(lambda m, x: m.head(m.cell(x)[0]), cell=nn.LSTMCell(4, 3), head=head(3))),
    "MultiheadAttention": Row(attention, SEQUENCE),
    "TransformerEncoder": Row(encoder, SEQUENCE),
    "TransformerEncoder, eval": Row(encoder, SEQUENCE, training=False),
    "keywords in, object with logits out": Row(Keywords, "keywords"),
    "a mapping that is no dict": Row(Keywords, "mapping"),
    "graph: nodes and edges": Row(Graph, "graph"),
}


@pytest.fixture(scope="session")
def rows() -> dict[str, Row]:
    return ROWS


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "name" in metafunc.fixturenames:
        metafunc.parametrize("name", ROWS)
