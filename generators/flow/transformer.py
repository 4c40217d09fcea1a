"""A velocity network over layer tokens: its size does not grow with the square of the networks it makes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from generators.flow.embedding import Embedding, zeroed
from weightspace.tokens import Tokens

EMBEDDED = 128  # width of what modulates the blocks


class LayerTransformer(nn.Module):
    """A transformer that reads and writes the tokens of a network's layers, zero at first.

    Every layer has projections of its own into the stream and out of it; every token has a learned position, so that
    it may know its unit: aligned networks have an order of units. Time and condition modulate all blocks alike for all
    tokens, and a gate on the input for each layer (see `networks.Residual`).

    Source: Peebles and Xie 2023, arXiv 2212.09748, section 3.2 (adaLN-Zero). Tokens: `weightspace.tokens`.
    """

    def __init__(
        self, tokens: Tokens, width: int, depth: int, heads: int, condition_width: int = 0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.tokens = tokens
        self.embedding = Embedding(EMBEDDED, condition_width)
        self.first = nn.ModuleList(nn.Linear(tokens.width, width) for _ in tokens.layers)
        self.positions = nn.Parameter(torch.randn(len(tokens), width) * 0.02)
        self.blocks = nn.ModuleList(TokenBlock(width, heads, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.last = nn.ModuleList(zeroed(nn.Linear(width, tokens.width)) for _ in tokens.layers)
        self.gate = zeroed(nn.Linear(EMBEDDED, len(tokens.layers)))

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        e = self.embedding(t, condition)
        pieces = self.tokens.split(x)
        hidden = self._by_layer(self.first, pieces) + self.positions
        for block in self.blocks:
            hidden = block(hidden, e)
        gate = self.gate(e)  # (batch, layers)
        gates = torch.cat([gate[:, i, None].expand(-1, s.stop - s.start) for i, s in enumerate(self.tokens.spans)], 1)
        return self.tokens.join(torch.addcmul(self._by_layer(self.last, self.norm(hidden)), gates[..., None], pieces))

    def _by_layer(self, projections: nn.ModuleList, values: Tensor) -> Tensor:
        """The tokens (batch, tokens, ...) of each layer by its own projection."""
        return torch.cat([one(values[:, span]) for one, span in zip(projections, self.tokens.spans, strict=True)], 1)


class TokenBlock(nn.Module):
    """A DiT block with adaLN-Zero: attention, then a network of two layers; the identity at first."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.modulation = zeroed(nn.Linear(EMBEDDED, 6 * width))
        self.norms = nn.ModuleList(nn.LayerNorm(width, elementwise_affine=False) for _ in range(2))
        self.queries = nn.Linear(width, 3 * width)
        self.mixed = nn.Linear(width, width)
        self.layers = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Dropout(dropout), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        shift, scale, gate, shift_2, scale_2, gate_2 = self.modulation(e)[:, None].chunk(6, 2)
        x = torch.addcmul(x, gate, self._attention(torch.addcmul(shift, self.norms[0](x), 1 + scale)))
        return torch.addcmul(x, gate_2, self.layers(torch.addcmul(shift_2, self.norms[1](x), 1 + scale_2)))

    def _attention(self, x: Tensor) -> Tensor:
        query, key, value = self.queries(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        heads = nn.functional.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        out: Tensor = self.mixed(heads.transpose(1, 2).flatten(2))
        return out
