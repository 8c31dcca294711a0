"""Heads against plain references."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from probes.fit import (
    AttentiveConfig,
    attentive_probabilities,
    fit_attentive,
    fit_linear,
    split_held_out,
    train_attentive,
)
from probes.heads import AttentiveHead, knn_probabilities, standardise_tokens


@pytest.fixture
def blobs() -> tuple[torch.Tensor, torch.Tensor]:
    """Three overlapping clouds: features [300, 8] and labels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 3
    centres = torch.randn(3, 8, generator=generator)
    return centres[labels] + 1.2 * torch.randn(300, 8, generator=generator), labels


def test_attentive_head_is_the_plain_cross_attention_block() -> None:
    """The folded form against norm, project, attend, add, norm, MLP, add, classify."""
    torch.manual_seed(0)
    head = AttentiveHead(24, 3, 5)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    tokens = torch.randn(4, 10, 24)
    query = head.query_tokens[0].expand(4, 1, 24)
    normed = head.norm1(tokens)
    key, value = head.kv(normed).chunk(2, dim=-1)

    def split(x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (3, 8)).transpose(1, 2)

    mixed = torch.nn.functional.scaled_dot_product_attention(split(head.q(query)), split(key), split(value))
    pooled = query + mixed.transpose(1, 2).flatten(2)
    pooled = pooled + head.mlp(head.norm2(pooled))
    expected = head.linear(pooled[:, 0])
    torch.testing.assert_close(head(standardise_tokens(tokens)), expected, atol=1e-3, rtol=1e-4)


def test_many_heads_at_once_are_what_each_is_alone() -> None:
    tokens, labels = torch.randn(40, 1, 6, 16, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 4
    together = train_attentive(tokens, labels, 4, AttentiveConfig(lrs=(1e-2, 1e-3), epochs=3, batch=16), seed=1)
    for lr, decay in together:
        alone = train_attentive(
            tokens, labels, 4, AttentiveConfig(lrs=(lr,), weight_decays=(decay,), epochs=3, batch=16), seed=1
        )[lr, decay]
        for mine, theirs in zip(together[lr, decay].parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-5)


def test_linear_probe_agrees_with_scikit_learn(blobs: tuple[torch.Tensor, torch.Tensor]) -> None:
    features, labels = blobs
    fitted = fit_linear(features[:200, None], labels[:200], features[200:, None], 3)
    mean, std = features[:200].mean(0), features[:200].std(0)
    strength = 1 / (2 * 200 * fitted.choice["weight_decay"])  # ours is mean loss + decay * |w|^2
    reference = LogisticRegression(C=strength, max_iter=2000, tol=1e-8)
    reference.fit(((features[:200] - mean) / std).numpy(), labels[:200].numpy())
    expected = reference.predict_proba(((features[200:] - mean) / std).numpy())
    torch.testing.assert_close(fitted.probabilities.double(), torch.tensor(expected).double(), atol=5e-3, rtol=0)


def test_knn_agrees_with_scikit_learn(blobs: tuple[torch.Tensor, torch.Tensor]) -> None:
    features, labels = blobs
    mean, std = features[:200].mean(0), features[:200].std(0)
    train, test = (features[:200] - mean) / std, (features[200:] - mean) / std
    reference = KNeighborsClassifier(
        20, metric="cosine", weights=lambda distance: torch.exp(torch.tensor((1 - distance) / 0.07)).numpy()
    )
    reference.fit(train.numpy(), labels[:200].numpy())
    found = knn_probabilities(features[:200], labels[:200], features[200:], 3)
    torch.testing.assert_close(found.double(), torch.tensor(reference.predict_proba(test.numpy())), atol=1e-4, rtol=0)


def test_held_out_part_is_stratified_and_disjoint() -> None:
    labels = torch.tensor([0] * 50 + [1] * 10 + [2])
    kept, held = split_held_out(labels, 0.2, seed=0)
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(61))
    assert labels[held].bincount(minlength=3).tolist() == [10, 2, 0]


def test_choice_of_the_head_never_sees_the_reported_set() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens, labels = torch.randn(60, 1, 4, 16, generator=generator), torch.arange(60) % 3
    config = AttentiveConfig(lrs=(1e-2, 1e-4), epochs=2)
    reported = torch.randn(30, 1, 4, 16, generator=generator)
    choices = [fit_attentive(tokens, labels, test, 3, config).choice for test in (reported, -reported)]
    linear = [fit_linear(tokens.mean(2), labels, test.mean(2), 3).choice for test in (reported, -reported)]
    assert choices[0] == choices[1]
    assert linear[0] == linear[1]


def test_views_are_averaged_as_probabilities() -> None:
    torch.manual_seed(0)
    head = AttentiveHead(16, 2, 3)
    tokens = torch.randn(5, 2, 4, 16)
    apart = [attentive_probabilities(head, tokens[:, view : view + 1]) for view in range(2)]
    torch.testing.assert_close(attentive_probabilities(head, tokens), (apart[0] + apart[1]) / 2)
