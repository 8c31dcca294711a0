"""Every ready config loads and says the published protocol; its header names a command."""

from pathlib import Path

import pytest

from launch.config import load_config
from launch.probing.probe import ProbeConfig

FOLDER = Path(__file__).parents[2] / "configs" / "probe"
FILES = sorted(FOLDER.glob("*.yaml"))
PROTOCOLS = {  # frames, stride, segments, crops, layers
    "kinetics400": (0, 4, 8, 3, 0),
    "kinetics400_vjepa1": (0, 4, 8, 3, 0),
    "ssv2": (0, 4, 2, 3, 0),
    "ssv2_vjepa1": (0, 4, 2, 3, 0),
    "diving48": (32, 2, 4, 3, 4),
    "imagenet": (16, 4, 1, 1, 0),
}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_config_loads_and_names_its_command(file: Path) -> None:
    load_config(ProbeConfig, file, [])
    assert f"vjepa probe configs/probe/{file.name} encoder=" in file.read_text()


@pytest.mark.parametrize("name", PROTOCOLS)
def test_published_protocols_are_as_published(name: str) -> None:
    config = load_config(ProbeConfig, FOLDER / f"{name}.yaml", [])
    found = (config.frames, config.data.stride, config.views.segments, config.views.crops, len(config.layers))
    assert found == PROTOCOLS[name]
    attentive = config.heads.attentive
    assert (attentive.epochs, attentive.batch, config.views.augmented) == (20, 256, 20)
    assert config.views.scale == (0.08, 1.0)
    if name.endswith("vjepa1"):
        assert (config.heads.names, attentive.grid) == (("attentive",), [(1e-3, 0.01)])
    else:
        assert (config.heads.names, attentive.heads, len(attentive.grid)) == (("attentive4",), 16, 20)
    assert config.cache == "off"
