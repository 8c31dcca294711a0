"""The ready-made configs in `configs/`, which commands find by short name from any folder."""

from pathlib import Path

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


def list_configs() -> dict[str, Path]:
    """All ready-made configs by name, such as `pretrain/small`."""
    return {file.relative_to(CONFIGS).with_suffix("").as_posix(): file for file in sorted(CONFIGS.rglob("*.yaml"))}


def find_config(name: str | Path) -> Path:
    """The file for `name`: a path, else a ready-made config by name (`small`, `pretrain/small`, with or without .yaml).

    `configs/pretrain/small.yaml` also works outside a checkout. A name that no config has is returned as it is;
    ValueError if several configs have it.
    """
    path = Path(name)
    if path.is_file():
        return path
    wanted = path.with_suffix("").as_posix() if path.suffix in (".yaml", ".yml") else path.as_posix()
    ready = list_configs()
    exact = ready.get(wanted.removeprefix("configs/"))
    if exact is not None:
        return exact
    found = [full for full in ready if "/" not in wanted and full.rsplit("/", 1)[-1] == wanted]
    if len(found) > 1:
        raise ValueError(f"the config name {name} is ambiguous: choose {' or '.join(found)}")
    return ready[found[0]] if found else path
