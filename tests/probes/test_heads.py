"""Heads against plain references."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

from probes import heads
from probes.fit import fit_linear
from probes.heads import AttentiveHead, knn_probabilities, knn_values, pool_many, standardise_tokens
from probes.linear import _ridge_solver


@pytest.fixture
def blobs() -> tuple[torch.Tensor, torch.Tensor]:
    """Three overlapping clouds: features [300, 8] and labels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 3
    centres = torch.randn(3, 8, generator=generator)
    return centres[labels] + 1.2 * torch.randn(300, 8, generator=generator), labels


def make_head(depth: int = 1) -> AttentiveHead:
    torch.manual_seed(depth)
    head = AttentiveHead(24, 3, 5, depth)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return head


def weigh(cosine_distance: torch.Tensor) -> torch.Tensor:
    return torch.exp((1 - torch.tensor(cosine_distance)) / 0.07).numpy()


@pytest.mark.parametrize("depth", [1, 4])
def test_attentive_head_is_self_attention_then_the_plain_cross_attention_block(depth: int) -> None:
    """The folded form against blocks, norm, project, attend, add, norm, MLP, add, classify."""
    head, tokens = make_head(depth), torch.randn(4, 10, 24)
    x = tokens
    for block in head.blocks:
        x = block(x, None)
    query = head.query_tokens[0].expand(4, 1, 24)
    key, value = head.kv(head.norm1(x)).chunk(2, dim=-1)

    def split(part: torch.Tensor) -> torch.Tensor:
        return part.unflatten(-1, (3, 8)).transpose(1, 2)

    mixed = torch.nn.functional.scaled_dot_product_attention(split(head.q(query)), split(key), split(value))
    pooled = query + mixed.transpose(1, 2).flatten(2)
    pooled = pooled + head.mlp(head.norm2(pooled))
    torch.testing.assert_close(head(tokens), head.linear(pooled[:, 0]), atol=1e-3, rtol=1e-4)


def test_heads_computed_as_one_are_the_heads() -> None:
    many = [make_head() for _ in range(3)]
    for number, head in enumerate(many):
        torch.manual_seed(number)
        for parameter in head.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    tokens = torch.randn(4, 10, 24)
    weights = {
        name: torch.stack([dict(head.named_parameters())[name] for head in many])
        for name, _ in many[0].named_parameters()
    }
    found = pool_many(weights, 3, standardise_tokens(tokens))
    torch.testing.assert_close(found, torch.stack([head.pool(tokens) for head in many]))


def test_shape_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="got width 24, 5 heads, depth 1"):
        AttentiveHead(24, 5, 3)


def test_linear_probe_agrees_with_scikit_learn(blobs: tuple[torch.Tensor, torch.Tensor]) -> None:
    features, labels = blobs
    fitted = fit_linear(features[:200, None], labels[:200], features[200:, None], 3)
    mean, std = features[:200].mean(0), features[:200].std(0)
    strength = 1 / (2 * 200 * fitted.choice["weight_decay"])  # ours is mean loss + decay * |w|^2
    reference = LogisticRegression(C=strength, max_iter=2000, tol=1e-8)
    reference.fit(((features[:200] - mean) / std).numpy(), labels[:200].numpy())
    expected = reference.predict_proba(((features[200:] - mean) / std).numpy())
    torch.testing.assert_close(fitted.probabilities.double(), torch.tensor(expected).double(), atol=5e-3, rtol=0)


def test_ridge_probe_agrees_with_scikit_learn(blobs: tuple[torch.Tensor, torch.Tensor]) -> None:
    features, labels = blobs
    values = 10 + 3 * features[:, 0] - features[:, 1] + labels
    fitted = fit_linear(features[:200, None], values[:200], features[200:, None], 0)
    mean, std = features[:200].mean(0), features[:200].std(0)
    reference = Ridge(alpha=200 * fitted.choice["weight_decay"])  # ours is mean squared error + decay * |w|^2
    reference.fit(((features[:200] - mean) / std).double().numpy(), values[:200].double().numpy())
    expected = torch.tensor(reference.predict(((features[200:] - mean) / std).double().numpy()))
    torch.testing.assert_close(fitted.probabilities[:, 0].double(), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("at_once", [2**24, 450])  # 450: two samples at a time
def test_knn_agrees_with_scikit_learn(
    blobs: tuple[torch.Tensor, torch.Tensor], at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heads, "SIMILARITIES", at_once)
    features, labels = blobs
    mean, std = features[:200].mean(0), features[:200].std(0)
    train, test = ((part - mean) / std for part in (features[:200], features[200:]))
    reference = KNeighborsClassifier(20, metric="cosine", weights=weigh).fit(train.numpy(), labels[:200].numpy())
    found = knn_probabilities(features[:200], labels[:200], features[200:], 3)
    torch.testing.assert_close(found.double(), torch.tensor(reference.predict_proba(test.numpy())), atol=1e-4, rtol=0)
    values = features[:, 0].exp()
    regression = KNeighborsRegressor(20, metric="cosine", weights=weigh).fit(train.numpy(), values[:200].numpy())
    said = knn_values(features[:200], values[:200], features[200:])
    torch.testing.assert_close(
        said.double(), torch.tensor(regression.predict(test.numpy())).double(), atol=1e-3, rtol=0
    )


def test_constant_features_and_a_single_sample_are_no_trouble() -> None:
    found = knn_probabilities(torch.ones(4, 3), torch.tensor([0, 1, 2, 2]), torch.ones(2, 3), 3)
    torch.testing.assert_close(found, torch.tensor([[0.25, 0.25, 0.5]] * 2))
    alone = fit_linear(torch.ones(1, 1, 3), torch.tensor([1]), torch.ones(2, 1, 3), 2)
    assert alone.probabilities.argmax(1).tolist() == [1, 1]


def test_ridge_with_more_features_than_samples_decomposes_the_smaller_product(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    rows, values = torch.randn(20, 60).double(), torch.randn(20).double()
    sizes, decompose = [], torch.linalg.eigh
    monkeypatch.setattr("torch.linalg.eigh", lambda matrix: (sizes.append(len(matrix)), decompose(matrix))[1])
    solve, tall = _ridge_solver(rows, values), _ridge_solver(rows.mT, torch.randn(60).double())
    assert sizes == [20, 20]
    for decay in (1e-3, 1.0):
        primal = torch.linalg.solve(rows.mT @ rows / 20 + decay * torch.eye(60), rows.mT @ values / 20)
        torch.testing.assert_close(solve(decay), primal)
        reference = Ridge(alpha=20 * decay, fit_intercept=False).fit(rows.numpy(), values.numpy())
        torch.testing.assert_close(solve(decay), torch.from_numpy(reference.coef_))
        assert tall(decay).shape == (20,)
