"""Our encoder and predictor against transformers' V-JEPA 2, with the same random weights."""

import pytest
import torch

from vjepa.formats.transformers import to_transformers
from vjepa.predictor import Predictor, PredictorConfig
from vjepa.vit import Encoder, EncoderConfig

pytest.importorskip("transformers")


def randomise(module: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


@pytest.mark.parametrize(("width", "heads"), [(48, 2), (60, 3), (64, 2)])  # rotary remainder 0, 2 and 2 channels
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_encoder_and_predictor_match_transformers(width: int, heads: int, attention: str) -> None:
    config = EncoderConfig(
        size="custom", width=width, depth=3, heads=heads, frames=8, crop=64, positions="rotary", rotary_order="tiled"
    )
    encoder = Encoder(config).eval()
    predictor = Predictor(PredictorConfig(width=24, depth=2, heads=2), config).eval()
    randomise(encoder)
    randomise(predictor)
    theirs = to_transformers(encoder, predictor, attention=attention).eval()
    video = torch.randn(2, 3, 8, 64, 64)
    shuffled = torch.stack([torch.randperm(64) for _ in range(2)])
    context_index, target_index = shuffled[:, :20].sort(1).values, shuffled[:, 20:50].sort(1).values
    with torch.no_grad():
        expected = theirs(video.transpose(1, 2), context_mask=[context_index], target_mask=[target_index])
        ours = encoder(video)
        context = ours.gather(1, context_index.unsqueeze(-1).expand(-1, -1, width))
        prediction = predictor(context, context_index, target_index)
    torch.testing.assert_close(ours, expected.last_hidden_state, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(prediction, expected.predictor_output.last_hidden_state, atol=1e-5, rtol=1e-5)
