"""Regularisers over all ranks: two processes with half the batch each say what one says of all of it."""

import multiprocessing
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, distributed, nn

from vjepa.regularise import Regulariser, RegulariserConfig

ALL = RegulariserConfig(
    variance=1.0, covariance=0.5, sigreg=0.3, temporal=0.7, motion=True, over_ranks=True, slices=8, expander=6
)
POOLED = RegulariserConfig(variance=1.0, covariance=0.5, sigreg=0.3, over="pooled", over_ranks=True, slices=8)
SETTINGS = {
    "tokens": ALL,
    "sigreg": RegulariserConfig(sigreg=1.0, over_ranks=True, slices=8),
    "vicreg": RegulariserConfig(variance=1.0, covariance=1.0, over_ranks=True),
    "pooled": POOLED,
}


def score(config: RegulariserConfig, rank: int, ranks: int) -> list[Tensor]:
    """Loss, then gradients of an encoder and of the expander, of one of `ranks` equal parts of eight clips."""
    torch.manual_seed(0)
    encoder, regulariser = nn.Linear(5, 6), Regulariser(config, 6)
    clips = torch.randn(8, 6, 5)
    index = torch.stack([torch.randperm(8)[:6] for _ in range(8)])
    weights = torch.rand(8, 6)
    part = slice(rank * 8 // ranks, (rank + 1) * 8 // ranks)
    loss = regulariser(0.5 * encoder(clips[part]), index[part], 8, 3, weights=weights[part], grid=(2, 2, 2))
    loss.backward()
    trained = [*encoder.parameters(), *regulariser.parameters()]
    return [loss.detach(), *(torch.zeros_like(p) if p.grad is None else p.grad for p in trained)]


def run_rank(rank: int, folder: str) -> None:
    """One of two processes; gradients are averaged as DDP does."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    for name, config in SETTINGS.items():
        values = score(config, rank, 2)
        for value in values[1:]:
            distributed.all_reduce(value)
            value /= 2
        torch.save(values, f"{folder}/{name}-{rank}.pt")
    distributed.destroy_process_group()


def test_statistics_over_two_ranks_equal_those_of_one_process_in_loss_and_gradients(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=run_rank, args=(rank, str(tmp_path))) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    for name, config in SETTINGS.items():
        wanted = score(config, 0, 1)
        for rank in range(2):
            found = torch.load(tmp_path / f"{name}-{rank}.pt", weights_only=True)
            for mine, theirs in zip(found, wanted, strict=True):
                torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}")


def test_without_the_option_a_half_is_not_the_whole() -> None:
    alone = replace(ALL, over_ranks=False)
    assert not torch.allclose(score(alone, 0, 2)[0], score(alone, 0, 1)[0], rtol=1e-3)
