"""Features are what the frozen encoder says of the clips, however they are asked for."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from data.loading.loader import DataConfig, EvalLoader, Views
from launch.probing.subjects import ImageSubject, read_subject
from probes.extract import Order, extract, stream
from probes.extractors import FirstFrame, FrameByFrame, FrozenEncoder, Pixels
from vjepa.encoder import Encoder
from vjepa.pixels import normalise

VIEWS = (Views(2, 2), Views(2, 1, augmented=3, flip=0.5))


def test_encoder_stays_as_it_is(data: DataConfig, encoder: Encoder) -> None:
    before = {name: tensor.clone() for name, tensor in (*encoder.named_parameters(), *encoder.named_buffers())}
    frozen = FrozenEncoder(encoder)
    features = extract(Order({"encoder": frozen, "first": FirstFrame(frozen)}, EvalLoader(data, 4)))["encoder"]
    assert not encoder.training
    after = dict((*encoder.named_parameters(), *encoder.named_buffers()))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert not features.pick(torch.tensor([0]), torch.tensor([0])).requires_grad


@pytest.mark.parametrize("views", VIEWS)
def test_streamed_tokens_are_those_in_memory(data: DataConfig, encoder: Encoder, views: Views) -> None:
    order = Order({"encoder": FrozenEncoder(encoder, precision="fp32", layers=(0, 2))}, EvalLoader(data, 3, views), 8)
    kept, streamed = extract(order)["encoder"], stream(order)["encoder"]
    assert kept.keys == streamed.keys
    assert torch.equal(kept.pooled, streamed.pooled)
    part = torch.tensor([7, 3, 20, 3, 0])
    index, view = torch.tensor([4, 0, 2, 1, 1]), torch.tensor([1, 0, 1, 1, 0])
    places = [(index, view), (index[:1], view[:1])]
    for mine, theirs in zip(kept.subset(part).walk(places), streamed.subset(part).walk(places), strict=True):
        torch.testing.assert_close(mine.float(), theirs.float(), atol=0.02, rtol=0.02)
    assert torch.equal(kept.subset(part).labels, kept.labels[part])
    assert torch.equal(kept.subset(part).pick(index, view), kept.pick(part[index], view))


def test_a_view_joins_layers_and_segments_and_is_pooled_over_the_last(data: DataConfig, encoder: Encoder) -> None:
    loader = EvalLoader(data, 4, Views(segments=2, crops=2))
    order = Order({"encoder": FrozenEncoder(encoder, precision="fp32", layers=(0, -1))}, loader, 3)
    features = extract(order)["encoder"]
    batch = next(iter(loader))
    assert features.shape == (2 * 2 * 8, 24)  # layers x segments x (2 x 2 x 2) tokens
    with torch.no_grad():
        layers = encoder.layers(normalise(batch.clips.flatten(0, 1)), (0, 2))
    apart = [tokens.unflatten(0, (4, 2, 2)) for tokens in layers]
    expected = torch.cat([tokens.flatten(2, 3) for tokens in apart], 2)
    for view in (0, 1):
        found = features.pick(torch.arange(4), torch.full((4,), view))
        torch.testing.assert_close(found.float(), expected[:, view], atol=0.02, rtol=0.02)
        torch.testing.assert_close(features.pooled[:4, view], apart[1][:, view].flatten(1, 2).mean(1))


def test_only_means_are_kept_where_no_head_reads_tokens(data: DataConfig, encoder: Encoder) -> None:
    order = Order({"encoder": FrozenEncoder(encoder)}, EvalLoader(data, 4), tokens=False)
    features = extract(order)["encoder"]
    assert torch.equal(features.pooled, extract(replace(order, tokens=True))["encoder"].pooled)
    with pytest.raises(ValueError, match="only the token means"):
        features.pick(torch.tensor([0]), torch.tensor([0]))


def test_random_views_that_nobody_pools_are_not_encoded_for_it(data: DataConfig, encoder: Encoder) -> None:
    shown = []

    class Counting(FrozenEncoder):
        def __call__(self, clips: Tensor) -> Tensor:
            shown.append(len(clips) if clips.any() else 0)
            return super().__call__(clips)

    order = Order({"encoder": Counting(encoder)}, EvalLoader(data, 4, Views(augmented=3)))
    whole, sparing = stream(order)["encoder"], stream(order, means=False)["encoder"]
    assert sum(shown) == 24 * 3 + 24
    assert (sparing.views, sparing.keys) == (3, whole.keys)
    assert torch.equal(sparing.pooled, whole.pooled[:, :1])
    assert sparing.subset(torch.tensor([3, 1])).views == 3
    index, view = torch.tensor([5, 2]), torch.tensor([2, 1])
    assert torch.equal(sparing.pick(index, view), whole.pick(index, view))


def test_a_streamed_view_is_encoded_in_whole_batches(data: DataConfig, encoder: Encoder) -> None:
    """However few samples with all their views are read at once in the first pass."""
    shown = []

    class Counting(FrozenEncoder):
        def __call__(self, clips: Tensor) -> Tensor:
            shown.append(len(clips))
            return super().__call__(clips)

    order = Order({"encoder": Counting(encoder)}, EvalLoader(data, 1, Views(segments=2, augmented=4)), clips=8)
    features = stream(order, means=False)["encoder"]
    shown.clear()
    features.pick(torch.arange(8), torch.zeros(8, dtype=torch.long))
    assert shown == [8, 8]


def test_shards_of_large_samples_have_sixteen_where_memory_allows(data: DataConfig) -> None:
    def count(crop: int, frames: int, views: int) -> int:
        loader = EvalLoader(replace(data, crop=crop, frames=frames), 1, Views(augmented=views))
        manifest = loader.manifest
        shards = [replace(manifest.shards[0], samples=10**6)]
        loader.manifest = replace(manifest, shards=shards)
        return len(Order({}, loader).ranges()[0])

    assert count(224, 16, 1) == 256 * 2**20 // (16 * 224**2 * 3)
    assert count(224, 16, 20) == 16
    assert count(256, 128, 20) == 2


def test_impossible_layers_are_refused(encoder: Encoder) -> None:
    for layers in ((3,), (-4,), (2, -1)):
        with pytest.raises(ValueError, match=r"layers must be distinct and in \[-3, 2\]"):
            FrozenEncoder(encoder, layers=layers)


@pytest.fixture
def image() -> ImageSubject:
    return ImageSubject("vit_tiny_patch16_224", crop=32)


def test_an_image_vit_sees_each_frame_alone(image: ImageSubject) -> None:
    frozen = image.freeze("cpu", "fp32")
    clips = torch.randint(256, (2, 4, 32, 32, 3), dtype=torch.uint8)
    tokens = frozen(clips)
    assert tokens.shape == (2, 4 * 4, 192)
    changed = clips.clone()
    changed[:, 2] = 0
    same = (frozen(changed) == tokens).flatten(2).all(2).unflatten(1, (4, 4))
    assert same[:, [0, 1, 3]].all()
    assert not same[:, 2].any()
    mean, std = (torch.tensor(values) for values in (frozen.mean, frozen.std))  # type: ignore[attr-defined]
    frame = ((clips[1, 3].float() / 255 - mean) / std).permute(2, 0, 1)[None]
    with torch.no_grad():
        expected: Tensor = image.image.forward_features(frame)[0, 1:]
    torch.testing.assert_close(tokens[1, 12:], expected, atol=1e-4, rtol=1e-4)


def test_an_image_vit_is_read_from_a_file_and_nothing_else(image: ImageSubject, tmp_path: Path) -> None:
    name = "vit_tiny_patch16_224"
    file = tmp_path / "weights.pth"
    whole = ImageSubject(name, seed=5)
    torch.save({"model": {**whole.image.state_dict(), "head.weight": torch.zeros(10, 192)}}, file)
    read = read_subject(f"timm:{name}:{file}")
    assert all(torch.equal(a, b) for a, b in zip(read.module.parameters(), whole.module.parameters(), strict=True))
    clips = torch.randint(256, (1, 2, 48, 48, 3), dtype=torch.uint8)
    assert read.freeze("cpu", "bf16")(clips).shape == (1, 2 * 196, 192)  # frames are resized to what it knows
    torch.save({"cls_token": torch.zeros(1, 1, 192)}, file)
    with pytest.raises(ValueError, match=f"weights.pth does not hold the weights of {name}"):
        read_subject(f"timm:{name}:{file}")
    with pytest.raises(FileNotFoundError):
        read_subject(f"timm:{name}:{tmp_path / 'absent.pth'}")
    for name, crop in (("resnet18", 0), ("resnet18", 32), ("efficientnet_b0", 0)):
        with pytest.raises(ValueError, match=f"timm:{name} is not a vision transformer"):
            read_subject(f"timm:{name}", crop=crop)
    with pytest.raises(ValueError, match="has no such model"):
        read_subject("timm:vit_of_nobody")
    assert isinstance(image.fresh(1).freeze("cpu", "bf16", (0, 5)), FrameByFrame)


def test_pixels_are_the_clip_made_small() -> None:
    clips = torch.randint(256, (2, 3, 32, 32, 3), dtype=torch.uint8)
    token = Pixels(4)(clips)
    expected = clips.float().unflatten(2, (4, 8)).unflatten(4, (4, 8)).mean((3, 5)) / 255
    torch.testing.assert_close(token.view(2, 3, 3, 4, 4).permute(0, 1, 3, 4, 2), expected)


def test_pixels_of_several_segments_are_one_token_a_clip(data: DataConfig) -> None:
    features = extract(Order({"pixels": Pixels(4)}, EvalLoader(data, 4, Views(segments=2))))["pixels"]
    assert features.shape[0] == 2
    assert features.clip_tokens == features.subset(torch.tensor([0])).clip_tokens == 1
