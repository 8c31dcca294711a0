"""Compiled blocks: few graphs, also under DDP, all of them in the first step; what is recomputed changes nothing."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from batches import make_batch
from ranks import on_two_ranks
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, _cur_sdpa_kernel_backends
from torch.utils.flop_counter import FlopCounterMode

from vjepa.attention import attend, pin_attention
from vjepa.blocks import Block, run_block
from vjepa.jepa import JEPA, JepaConfig
from vjepa.masks import MaskConfig


class Step(nn.Module):
    """A training step as the forward pass of a module, as Lightning gives it to DDP."""

    def __init__(self, config: JepaConfig, backend: Callable[..., Any]) -> None:
        super().__init__()
        self.model = JEPA(config)
        self.model.compile_blocks(backend)

    def forward(self, number: int) -> Tensor:
        return self.model.training_step(make_batch(number), 0)


def count_graphs(config: JepaConfig, rank: int, world: int, split: bool = False) -> list[int]:
    """Graphs compiled so far after each of three steps under DDP; `split`: with torch's default for DDP."""
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")
    graphs: list[Any] = []

    def count(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    step = Step(config, count)
    torch._dynamo.config.optimize_ddp = split
    torch.distributed._DEFAULT_FIRST_BUCKET_BYTES = 1000  # so that these few parameters fill several buckets
    model = nn.parallel.DistributedDataParallel(
        step, bucket_cap_mb=0.002, broadcast_buffers=False, gradient_as_bucket_view=True
    )
    found = []
    for number in range(3):
        model(number).backward()
        found.append(len(graphs))
    return found


def count_both(config: JepaConfig, rank: int, world: int) -> dict[str, list[int]]:
    return {"ours": count_graphs(config, rank, world), "default": count_graphs(config, rank, world, split=True)}


@pytest.mark.slow
def test_under_ddp_a_step_has_three_graphs_and_all_of_them_at_once(tiny: JepaConfig, tmp_path: Path) -> None:
    """One of the target encoder, one of the context encoder, one of the predictor."""
    found = on_two_ranks(count_both, tiny, tmp_path, 29_731)
    for counts in found:
        assert counts["ours"] == [3, 3, 3]
        assert counts["default"][0] > 3, "what the setting prevents"


def test_lengths_are_static_only_where_they_do_not_vary(tiny: JepaConfig) -> None:
    assert not tiny.lengths_vary
    assert replace(tiny, masks={"blocks": MaskConfig()}).lengths_vary
    assert not replace(tiny, masks={"blocks": MaskConfig()}, objective="views").lengths_vary


@pytest.mark.parametrize("keeps", ["nothing", "products"])
def test_recomputed_activations_give_the_same_gradients(tiny: JepaConfig, keeps: Any) -> None:
    found = []
    for recompute in (False, True):
        encoder = replace(tiny.encoder, checkpoint_activations=recompute, checkpoint_keeps=keeps)
        model = JEPA(replace(tiny, encoder=encoder))
        model.training_step(make_batch(0), 0).backward()
        found.append({name: value.grad for name, value in model.named_parameters() if value.grad is not None})
    for name, gradient in found[0].items():
        assert torch.equal(found[1][name], gradient), name


def test_products_that_are_kept_are_not_computed_again() -> None:
    block, x = Block(24, 2, 4.0), torch.randn(2, 5, 24, requires_grad=True)
    flops = {}
    for kept in (None, "nothing", "products"):
        with FlopCounterMode(display=False) as counter:
            run_block(block, x, None, (), kept).sum().backward()
        flops[kept] = counter.get_total_flops()
    assert flops[None] == flops["products"] < flops["nothing"]


class Noisy(nn.Module):
    """A block of somebody else's, with randomness inside."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor, rotation: Any, lengths: Any) -> Tensor:
        return nn.functional.dropout(self.inner(x), 0.5)


def test_a_block_with_randomness_draws_the_same_numbers_again() -> None:
    block, x = Noisy(), torch.randn(3, 7, 4, requires_grad=True)
    torch.manual_seed(0)
    output = run_block(block, x, None, (), "nothing")
    dropped = output == 0
    (gradient,) = torch.autograd.grad(output.sum(), block.inner.bias)
    torch.testing.assert_close(gradient, 2.0 * (~dropped).sum((0, 1)).float())


def test_a_kernel_is_pinned_and_let_go() -> None:
    before = set(_cur_sdpa_kernel_backends())
    with pin_attention("math"):
        assert set(_cur_sdpa_kernel_backends()) == {SDPBackend.MATH}
        x = torch.randn(1, 2, 5, 8, dtype=torch.bfloat16)
        pinned = attend(x, x, x)
    with pin_attention("flash"):
        assert SDPBackend.FLASH_ATTENTION in _cur_sdpa_kernel_backends()
        assert SDPBackend.CUDNN_ATTENTION not in _cur_sdpa_kernel_backends()
    assert set(_cur_sdpa_kernel_backends()) == before
    torch.testing.assert_close(attend(x, x, x), pinned, atol=2e-2, rtol=2e-2)
