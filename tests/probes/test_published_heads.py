"""Probe heads as V-JEPA publishes them: epsilon, initial scale, official files."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from probes.evaluate import HeadsConfig, fit
from probes.features import Features
from probes.fit import AttentiveConfig
from probes.heads import AttentiveHead
from probes.official import load_official
from probes.saved import SavedHead, load_attentive, save_head
from probes.stack import Candidate, Stack


def make(depth: int, style: str = "published", width: int = 32) -> AttentiveHead:
    torch.manual_seed(3)
    head = AttentiveHead(width, 16, 5, depth, style)
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.2)
    return head.eval().requires_grad_(False)


def official(head: AttentiveHead) -> dict[str, Tensor]:
    """A head's tensors under the public code's names."""
    named = {}
    for name, value in head.state_dict().items():
        if name.startswith("linear."):
            place = ""
        elif name.startswith(("q.", "kv.")):
            place = "pooler.cross_attention_block.xattn."
        elif name.startswith(("query_tokens", "blocks.")):
            place = "pooler."
        else:
            place = "pooler.cross_attention_block."
        named[f"module.{place}{name}"] = value
    return {**named, "module.pooler.norm.weight": torch.ones(32), "module.pooler.norm.bias": torch.zeros(32)}


def by_the_paper(head: AttentiveHead, tokens: Tensor, epsilon: float) -> Tensor:
    """One learned query attends to the tokens, written out for one head of depth 1."""

    def norm(x: Tensor, layer: nn.LayerNorm) -> Tensor:
        return functional.layer_norm(x, x.shape[-1:], layer.weight, layer.bias, epsilon)

    query = head.query_tokens.expand(len(tokens), -1, -1)
    q = head.q(query).unflatten(-1, (16, -1)).transpose(1, 2)
    k, v = head.kv(norm(tokens, head.norm1)).unflatten(-1, (2, 16, -1)).permute(2, 0, 3, 1, 4)
    pooled = query + functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    return head.linear(pooled + head.mlp(norm(pooled, head.norm2)))[:, 0]


def test_a_published_head_is_the_equations_with_epsilon_1e_5() -> None:
    head, tokens = make(1), 1e-3 * torch.randn(3, 7, 32)  # small, so that the epsilon shows
    torch.testing.assert_close(head(tokens), by_the_paper(head, tokens, 1e-5), atol=1e-4, rtol=1e-4)
    assert (head(tokens) - by_the_paper(head, tokens, 1e-6)).abs().max() > 0.01
    assert all(block.norm1.eps == block.norm2.eps == 1e-5 for block in make(4).blocks)


@pytest.mark.parametrize(
    ("style", "depth", "wanted"),
    [("published", 1, [2]), ("published", 4, [2, 4, 6, 6]), ("transformers", 4, [1, 2, 3, 4])],
)
def test_initial_outputs_are_divided_by_the_published_roots(style: str, depth: int, wanted: list[int]) -> None:
    torch.manual_seed(0)
    head = AttentiveHead(192, 16, 5, depth, style)
    outputs = [block.mlp.fc2 for block in head.blocks] + [head.mlp.fc2]
    for layer, root in zip(outputs, wanted, strict=True):
        assert float(layer.weight.detach().std()) == pytest.approx(0.02 / root**0.5, rel=0.03)


@pytest.mark.parametrize("depth", [1, 4])
def test_an_official_probe_file_gives_the_same_logits(depth: int, tmp_path: Path) -> None:
    head, file = make(depth), tmp_path / "probe.pt"
    torch.save({"classifiers": [official(make(depth)), official(head)], "epoch": 20, "batch_size": 4}, file)
    with pytest.raises(ValueError, match="holds 2 heads of a sweep: give"):
        load_official(file)
    with pytest.raises(ValueError, match="holds heads 0 to 1"):
        load_official(f"{file}:2")
    tokens = torch.randn(2, 9, 32)
    found = load_attentive(f"{file}:1")
    assert torch.equal(found.head(tokens), head(tokens))
    assert (found.classes, found.head.depth) == (("0", "1", "2", "3", "4"), depth)
    found.check_encoder(32, "any")
    with pytest.raises(ValueError, match="takes features of width 32, but the encoder has width 24"):
        found.check_encoder(24, "any")


def test_an_official_file_is_read_strictly(tmp_path: Path) -> None:
    whole, file = official(make(1)), tmp_path / "probe.pth.tar"
    torch.save({"classifier": {**whole, "module.pooler.extra": torch.ones(1)}}, file)
    with pytest.raises(ValueError, match="unknown extra"):
        load_official(file)
    del whole["module.pooler.cross_attention_block.xattn.q.bias"]
    torch.save({"classifier": whole}, file)
    with pytest.raises(ValueError, match=r"missing q\.bias"):
        load_official(file)
    torch.save({"encoder": whole}, file)
    with pytest.raises(ValueError, match="holds no probe"):
        load_official(file)


def test_a_saved_head_keeps_its_epsilon(tmp_path: Path) -> None:
    head = make(4)
    save_head(SavedHead(head, ("a", "b", "c", "d", "e"), "runs/a", "01"), tmp_path)
    found = load_attentive(tmp_path).head
    assert (found.style, found.epsilon) == ("published", 1e-5)
    tokens = torch.randn(2, 9, 32)
    assert torch.equal(found(tokens), head(tokens))


def test_a_given_head_answers_the_test_set_without_training(tmp_path: Path) -> None:
    head, file = make(4), tmp_path / "probe.pt"
    torch.save({"classifiers": [official(head)]}, file)
    tokens, labels = torch.randn(6, 2, 9, 32), torch.tensor([0, 1, 2, 3, 4, 0])
    features = Features.from_tokens(tokens, labels)
    fitted = fit("given", features, features, 5, HeadsConfig(names=("given",), given=str(file)), 0)
    wanted = head(tokens.bfloat16().float().flatten(0, 1)).softmax(1).unflatten(0, (6, 2)).mean(1)
    torch.testing.assert_close(fitted.probabilities, wanted, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="has 5 outputs; the encoder has width 32 and the test set 3 classes"):
        fit("given", features, features, 3, HeadsConfig(names=("given",), given=str(file)), 0)
    with pytest.raises(ValueError, match=r"needs heads\.given"):
        fit("given", features, features, 5, HeadsConfig(names=("given",)), 0)


@pytest.mark.parametrize("depth", [1, 2])
def test_a_sweep_trains_heads_of_its_style(depth: int) -> None:
    assert AttentiveConfig().style == "transformers"
    stack = Stack([Candidate(1e-3, 0.01, 0)], (32, 2, 5, depth), 4, style="published")
    tokens = 1e-3 * torch.randn(3, 7, 32)
    head = stack.head(0)
    assert head.epsilon == 1e-5
    torch.testing.assert_close(stack.answer(tokens)[0], head(tokens))
