"""Normalisation of stored pixels for the encoder."""

import pytest
import torch
from torch import Tensor, nn

from vjepa.pixels import _COPIES, MEAN, STD, normalise


class Whole(nn.Module):
    """What somebody exports who wants pixels in."""

    def forward(self, clips: Tensor) -> Tensor:
        return normalise(clips)


@pytest.mark.parametrize("warm", [False, True])
def test_an_export_leaves_nothing_behind(warm: bool) -> None:
    _COPIES.clear()
    clips = torch.randint(0, 256, (1, 2, 4, 4, 3), dtype=torch.uint8)
    if warm:
        normalise(clips)
    program = torch.export.export(Whole(), (clips,), strict=False)
    wanted = ((clips / 255 - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 4, 1, 2, 3)
    found = normalise(clips)
    assert type(found) is Tensor
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(program.module()(clips), wanted, atol=1e-5, rtol=1e-5)
