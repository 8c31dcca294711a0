"""The data sets of a study: folders of shards, or generated ones."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.generated.kinds import find_kind
from data.generated.videos import write_set
from launch.config import load_config


@dataclass(frozen=True)
class DataSet:
    """A labelled pair of sets on which every choice is trained and probed: folders of shards, or a kind to generate."""

    train: str = ""  # folder of shards; empty: generated
    test: str = ""
    kind: str = ""  # of generated data, see `vjepa generate --list`; written to OUTPUT/SET/data unless it is there
    settings: dict[str, Any] = field(default_factory=dict)  # of that kind
    clips: int = 1500  # generated for training
    test_clips: int = 600

    def __post_init__(self) -> None:
        if bool(self.kind) == bool(self.train and self.test):
            found = f"kind={self.kind!r}, train={self.train!r}, test={self.test!r}"
            raise ValueError(f"sets: give either kind, or train and test, got {found}")

    def shards(self, output: Path) -> tuple[str, str]:
        """Two folders of shards, to train and to test on. Those of a generated set lie in `output`."""
        if not self.kind:
            return self.train, self.test
        return self._generate(output / "train", self.clips, 0), self._generate(output / "test", self.test_clips, 1)

    def _generate(self, output: Path, clips: int, seed: int) -> str:
        shards = output / "shards"
        if not shards.is_dir():
            kind = find_kind(self.kind)
            settings = load_config(kind.config, None, [f"{key}={value}" for key, value in self.settings.items()])
            print(f"generating {clips} clips of {self.kind} into {output}", flush=True)
            write_set(kind, settings, output, clips, seed, jobs=os.cpu_count() or 1)
        return str(shards)
