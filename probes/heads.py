"""Probe heads on frozen tokens. n clips, N tokens per view, D width, C outputs (classes, or one for regression).

K attentive heads of depth 1 on the same tokens are computed together: their queries are rows of one matrix.
"""

from collections.abc import Mapping
from math import sqrt
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from vjepa.blocks import Block, Mlp

Style = Literal["transformers", "published"]  # whose LayerNorm epsilon and initial scale
EPSILONS: dict[Style, float] = {"transformers": 1e-6, "published": 1e-5}
EPSILON = EPSILONS["transformers"]
SIMILARITIES = 2**24  # maximum number of k-NN similarities in memory


class AttentiveHead(nn.Module):
    """V-JEPA's attentive probe: `depth` - 1 self-attention blocks, then cross-attention with one learnable query.

    Depth 1 is V-JEPA 1's, depth 4 V-JEPA 2's. With a single query the key and value projections can be folded:
    q K(x) = (q W_k) x and W V(x) = W_v (W x). So tokens are never projected, only weighted; the result is the same.
    """

    def __init__(self, width: int, heads: int, classes: int, depth: int = 1, style: Style = "transformers") -> None:
        super().__init__()
        if width % heads or depth < 1:
            raise ValueError(
                f"an attentive head's width must be a multiple of its attention heads and its depth at least 1, "
                f"got width {width}, {heads} heads, depth {depth}"
            )
        self.heads, self.depth, self.style, self.epsilon = heads, depth, style, EPSILONS[style]
        blocks = [Block(width, heads, 4.0) for _ in range(depth - 1)]
        self.blocks = nn.ModuleList(blocks)
        self.query_tokens = nn.Parameter(torch.zeros(1, 1, width))
        self.norm1 = nn.LayerNorm(width, eps=self.epsilon)
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.norm2 = nn.LayerNorm(width, eps=self.epsilon)
        self.mlp = Mlp(width, 4 * width)
        self.linear = nn.Linear(width, classes)
        for block in blocks:
            block.norm1.eps = block.norm2.eps = self.epsilon
        self._initialise([(block.attn.proj, block.mlp.fc2) for block in blocks])

    def forward(self, tokens: Tensor) -> Tensor:
        """Encoder tokens [n, N, D] -> logits [n, C]."""
        logits: Tensor = self.linear(self.pool(tokens))
        return logits

    def pool(self, tokens: Tensor) -> Tensor:
        """Tokens [n, N, D] -> pooled features before the classifier [n, D]."""
        x = tokens.to(self.query_tokens.dtype)
        for block in self.blocks:
            x = block(x, None)
        weights = {name: parameter[None] for name, parameter in self.named_parameters()}
        return pool_many(weights, self.heads, standardise_tokens(x, self.epsilon), self.epsilon)[0]

    def _initialise(self, outputs: list[tuple[nn.Linear, ...]]) -> None:
        """Truncated normal 0.02, biases 0; the outputs of layer l (from 1) are divided by sqrt(l), as in transformers.

        As published, they are divided by sqrt(2 l), and cross-attention counts as the last self-attention layer.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.query_tokens, std=0.02)
        with torch.no_grad():
            for layer, projections in enumerate([*outputs, (self.mlp.fc2,)], 1):
                published = 2 * max(1, min(layer, len(outputs)))
                for projection in projections:
                    projection.weight.div_(sqrt(published if self.style == "published" else layer))


def pool_many(weights: Mapping[str, Tensor], heads: int, tokens: Tensor, epsilon: float = EPSILON) -> Tensor:
    """Cross-attention blocks of K attentive heads on standardised tokens [n, N, D] -> [K, n, D].

    weights: parameters of `AttentiveHead` by name, stacked over K heads. norm1's scale and shift are folded in.
    """
    query = weights["query_tokens"][:, 0, 0]  # [K, D]
    scale, shift = weights["norm1.weight"][:, None], weights["norm1.bias"][:, None]  # [K, 1, D]
    key, value = weights["kv.weight"].unflatten(1, (2, heads, -1)).unbind(1)  # each [K, heads, R, D]
    projected = torch.einsum("kod,kd->ko", weights["q.weight"], query) + weights["q.bias"]
    folded = torch.einsum("khr,khrd->khd", projected.unflatten(1, (heads, -1)), key) * scale / sqrt(key.shape[2])
    # Terms that do not depend on the token (the key's bias, norm1's shift) cancel in the softmax.
    attention = (folded.flatten(0, 1) @ tokens.mT).softmax(2)  # [n, K*heads, N]
    seen = (attention @ tokens).unflatten(1, (len(query), heads)) * scale + shift  # [n, K, heads, D]
    mixed = torch.einsum("nkhd,khrd->knhr", seen, value).flatten(2)
    pooled = query[:, None] + mixed + weights["kv.bias"].chunk(2, 1)[1][:, None]
    normed = functional.layer_norm(pooled, pooled.shape[-1:], eps=epsilon)
    normed = normed * weights["norm2.weight"][:, None] + weights["norm2.bias"][:, None]
    hidden = functional.gelu(apply_many(weights, "mlp.fc1", normed))
    return pooled + apply_many(weights, "mlp.fc2", hidden)


def apply_many(weights: Mapping[str, Tensor], layer: str, x: Tensor) -> Tensor:
    """A linear layer of K heads, each on its own x: [K, n, in] -> [K, n, out]."""
    return torch.baddbmm(weights[f"{layer}.bias"][:, None], x, weights[f"{layer}.weight"].mT)


def standardise_tokens(tokens: Tensor, epsilon: float = EPSILON) -> Tensor:
    """The part of norm1 that has no parameters: each token [.., D] to mean 0 and variance 1, in fp32."""
    return functional.layer_norm(tokens.float(), tokens.shape[-1:], eps=epsilon)


class LinearHead(nn.Module):
    """A linear map of standardised features, for multinomial logistic regression or ridge regression."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.linear = nn.Linear(width, classes)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor) -> Tensor:
        """features [n, D] -> logits [n, C]."""
        logits: Tensor = self.linear(self.standardise(features))
        return logits

    def measure(self, features: Tensor) -> None:
        """Set mean and scale from the features [n, D] it will be trained on."""
        self.mean.copy_(features.mean(0))
        self.scale.copy_(1 / _deviation(features))

    def standardise(self, features: Tensor) -> Tensor:
        """Standardise features [n, D] with the training features' mean and standard deviation."""
        return (features - self.mean) * self.scale


def knn_probabilities(
    train: Tensor, labels: Tensor, features: Tensor, classes: int, neighbours: int = 20, temperature: float = 0.07
) -> Tensor:
    """Weighted k-NN by cosine over features standardised with the training set's statistics -> [n, C] (Wu et al. 2018).

    train [m, V, D] or [m, D] with labels [m], features [n, D]; a training sample is the mean of its unit view vectors.
    """
    weights, nearest = _find_neighbours(train, features, neighbours, temperature)
    return torch.zeros(len(features), classes, device=train.device).scatter_add_(1, labels[nearest], weights)


def knn_values(
    train: Tensor, values: Tensor, features: Tensor, neighbours: int = 20, temperature: float = 0.07
) -> Tensor:
    """Like `knn_probabilities` for regression: weighted mean of the neighbours' values [m] -> [n]."""
    weights, nearest = _find_neighbours(train, features, neighbours, temperature)
    return (weights * values[nearest]).sum(1)


def _find_neighbours(train: Tensor, features: Tensor, neighbours: int, temperature: float) -> tuple[Tensor, Tensor]:
    """Weights (sum 1) and indices of each feature's neighbours: both [n, neighbours]."""
    flat = train.flatten(0, -2)
    mean, scale = flat.mean(0), 1 / _deviation(flat)
    references = functional.normalize((flat - mean) * scale, dim=1)
    if len(flat) > len(train):  # several views
        references = functional.normalize(references.view_as(train).mean(1), dim=1)
    references = references.view(len(train), -1)
    parts = []
    for some in features.split(max(1, SIMILARITIES // len(references))):
        queries = functional.normalize((some - mean) * scale, dim=1)
        similarity, nearest = (queries @ references.T).topk(min(neighbours, len(references)), dim=1)
        parts.append(((similarity / temperature).softmax(1), nearest))
    weights, indices = zip(*parts, strict=True)
    return torch.cat(weights), torch.cat(indices)


def _deviation(features: Tensor) -> Tensor:
    """Standard deviation of each feature [n, D] -> [D], 1 where it is constant."""
    deviation = features.std(0, correction=min(1, len(features) - 1))
    return torch.where(deviation > 1e-6, deviation, 1.0)
