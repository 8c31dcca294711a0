"""What is put on frozen tokens. n clips, N tokens of a view, D width, C classes."""

from math import sqrt

import torch
from timm.layers import Mlp
from torch import Tensor, nn
from torch.nn import functional

EPSILON = 1e-6  # of the norms, as in the encoder and in transformers; V-JEPA's own probe has 1e-5


class AttentiveHead(nn.Module):
    """V-JEPA 1's attentive probe: a learnable query looks at all tokens once, then a linear classifier.

    With a single query the key and value projections fold into it: q K(x) = (q W_k) x and W V(x) = W_v (W x), so a
    token is never projected, only weighed; the result is the same.
    """

    def __init__(self, width: int, heads: int, classes: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(
                f"an attentive head's width must be a multiple of its attention heads, got {width}, {heads}"
            )
        self.heads = heads
        self.query_tokens = nn.Parameter(torch.zeros(1, 1, width))
        self.norm1 = nn.LayerNorm(width, eps=EPSILON)
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.norm2 = nn.LayerNorm(width, eps=EPSILON)
        self.mlp = Mlp(width, 4 * width)
        self.linear = nn.Linear(width, classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.query_tokens, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Standardised tokens [n, N, D] (see `standardise_tokens`) -> logits [n, C]."""
        logits: Tensor = self.linear(self.pool(tokens))
        return logits

    def pool(self, tokens: Tensor) -> Tensor:
        """Standardised tokens [n, N, D] -> what the query makes of them, before the classifier: [n, D]."""
        query = self.query_tokens[0]
        pooled = query + self._attend(query, tokens)
        whole: Tensor = pooled + self.mlp(self.norm2(pooled))
        return whole

    def _attend(self, query: Tensor, tokens: Tensor) -> Tensor:
        """Cross attention of query [1, D] over norm1 of the tokens -> [n, D]; norm1's scale and shift fold in."""
        key, value = self.kv.weight.unflatten(0, (2, self.heads, -1)).unbind(0)  # each [heads, R, D]
        asked = self.q(query).unflatten(-1, (self.heads, -1))[0]  # [heads, R]
        looked_for = torch.einsum("hr,hrd->hd", asked, key) * self.norm1.weight / sqrt(asked.shape[-1])
        # What does not depend on the token (the key's bias, norm1's shift) cancels in the softmax.
        weights = (tokens @ looked_for.T).softmax(1)  # [n, N, heads]
        seen = weights.transpose(1, 2) @ tokens * self.norm1.weight + self.norm1.bias  # [n, heads, D]
        mixed = torch.einsum("nhd,hrd->nhr", seen, value).flatten(1)
        return mixed + self.kv.bias.chunk(2)[1]


def standardise_tokens(tokens: Tensor) -> Tensor:
    """The part of norm1 that has no parameters: each token [.., D] to mean 0 and variance 1, in fp32."""
    return functional.layer_norm(tokens.float(), tokens.shape[-1:], eps=EPSILON)


class LinearHead(nn.Module):
    """Multinomial logistic regression on standardised features."""

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
        """Take over mean and deviation of the features [n, D] it will be trained on."""
        self.mean.copy_(features.mean(0))
        self.scale.copy_(1 / features.std(0).clamp(min=1e-6))

    def standardise(self, features: Tensor) -> Tensor:
        """features [n, D] with the mean and deviation of those it is trained on taken out."""
        return (features - self.mean) * self.scale


def knn_probabilities(
    train: Tensor, labels: Tensor, features: Tensor, classes: int, neighbours: int = 20, temperature: float = 0.07
) -> Tensor:
    """Weighted k-NN by cosine over features standardised with the training set's statistics -> [n, C] (Wu et al. 2018).

    train [m, D] with labels [m], features [n, D].
    """
    mean, scale = train.mean(0), train.std(0).clamp(min=1e-6)
    known = functional.normalize((train - mean) / scale, dim=1)
    asked = functional.normalize((features - mean) / scale, dim=1)
    similarity, nearest = (asked @ known.T).topk(min(neighbours, len(known)), dim=1)
    votes = torch.zeros(len(features), classes)
    votes.scatter_add_(1, labels[nearest], (similarity / temperature).exp())
    return votes / votes.sum(1, keepdim=True)
