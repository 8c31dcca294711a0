"""Generated videos labelled by their motion alone, for the demo, tests and measuring peak throughput.

Textured sprites move over a cluttered background. Their layout lives on cycles: positions on a torus larger than the
frame, angles on a circle, log sizes on a loop whose seam is hidden by fading. Each layout is drawn uniformly on these
cycles and a motion only shifts it along them, so every single frame has the same distribution in every class; frame 0
is even the same picture for all labels of one seed. T frames, H = W = size pixels, N sprites.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data.generated.ground import draw_ground, shift_ground
from data.generated.kinds import Clip, clip_seed, find_kind, generated
from data.generated.painting import EXTENT, Floats, Look, Pixels, Poses, draw_look, paint_sprite, unpack_pixels
from data.generated.videos import Progress, write_kind

CLASSES: tuple[str, ...] = (
    "left", "right", "up", "down", "spin_left", "spin_right",
    "grow", "shrink", "orbit_left", "orbit_right", "shake", "bounce",
)  # fmt: skip

_FADE = 0.1  # fraction of the size loop over which a sprite fades in, and out
_CANDIDATES = 5  # positions tried for each sprite; the one farthest from the others is kept


@dataclass(frozen=True)
class SyntheticConfig:
    """Lengths are pixels of a 64-pixel frame and scale with `size`; values are drawn uniformly, once per clip."""

    size: int = 64  # side length in pixels
    frames: int = 16  # per clip
    fps: int = 8  # frames per second of the video file
    crf: int = 20  # H.264 quality, 0 (lossless) to 51
    sprites: tuple[int, int] = (11, 14)  # number on the torus; a little less than half of them are in view
    radius: tuple[float, float] = (6.5, 15.0)  # of a sprite
    speed: tuple[float, float] = (1.6, 3.4)  # per frame; for left, right, up, down
    spin: tuple[float, float] = (12.0, 24.0)  # degrees per frame
    zoom: tuple[float, float] = (0.05, 0.09)  # relative growth per frame
    orbit: tuple[float, float] = (6.0, 10.0)  # radius of the circle
    distractors: tuple[int, int] = (0, 2)  # number of small sprites that drift independently
    ground: tuple[float, float] = (0.15, 0.3)  # brightness of the background, 0 to 1; sprites are brighter
    camera_shake: float = 0.2  # standard deviation of the whole picture's displacement
    flicker: float = 0.03  # relative standard deviation of the brightness between frames

    def __post_init__(self) -> None:
        for name, low, high in (("size", 32, 1024), ("frames", 2, 1024), ("fps", 1, 240), ("crf", 0, 51)):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"synthetic.{name} must be from {low} to {high}, got {getattr(self, name)}")
        if self.size % 2:
            raise ValueError(f"synthetic.size must be even (H.264 halves the colour planes), got {self.size}")
        for name, least in (("sprites", 1), ("distractors", 0)):
            low, high = getattr(self, name)
            if not least <= low <= high:
                raise ValueError(f"synthetic.{name} must satisfy {least} <= low <= high, got {getattr(self, name)}")
        for name in ("radius", "speed", "spin", "zoom", "orbit", "ground"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"synthetic.{name} must satisfy 0 < low <= high, got {getattr(self, name)}")
        if self.radius[0] == self.radius[1]:
            raise ValueError(f"synthetic.radius must satisfy low < high, for grow and shrink, got {self.radius}")
        for name in ("camera_shake", "flicker"):
            if getattr(self, name) < 0:
                raise ValueError(f"synthetic.{name} must not be negative, got {getattr(self, name)}")


@generated("sprites", SyntheticConfig, classes=lambda _: CLASSES)
def render_sprites(config: SyntheticConfig, index: int, seed: int) -> Clip:
    """Textured sprites over a darker, cluttered background, all with the same motion, one of twelve."""
    label = index % len(CLASSES)
    return Clip(render_clip(label, clip_seed(seed, index), config), label)


def render_clip(label: int, seed: int, config: SyntheticConfig) -> npt.NDArray[np.uint8]:
    """Frames [T, H, W, 3] of one clip: a pure function of its arguments."""
    return render_scene(
        label, seed, config, lambda random, hue, side: Scene(draw_ground(random, hue, side, config.ground))
    )


@dataclass(frozen=True)
class Scene:
    """The background [side, side], and how bright the sprites must be to stand out from it."""

    ground: Pixels
    brightness: float = 1.0  # of the sprites' colours


def render_scene(
    label: int, seed: int, config: SyntheticConfig, draw_scene: Callable[[np.random.Generator, float, int], Scene]
) -> npt.NDArray[np.uint8]:
    """Frames [T, H, W, 3] of motion `label` in front of the background draw_scene(random, hue, side)."""
    if not 0 <= label < len(CLASSES):
        raise ValueError(f"label must be from 0 to {len(CLASSES) - 1}, got {label}")
    # All random values are drawn in the same order whatever the label, so the scene depends on the seed alone.
    random = np.random.Generator(np.random.PCG64(seed))
    motion = _draw_motion(CLASSES[label], random, config)
    camera = _smooth_noise(random, config.frames, 2) * config.camera_shake * config.size / 64
    light = random.uniform(0.85, 1.1) * (1 + config.flicker * _smooth_noise(random, config.frames, 1))
    hue = float(random.uniform())
    scene = draw_scene(random, hue, config.size + 2 * _margin(config))
    frames = shift_ground(scene.ground, camera, config.size)
    for poses in _place_distractors(random, camera, config) + _place_sprites(random, motion, camera, config):
        paint_sprite(frames, _dim(draw_look(random, hue), scene.brightness), poses)
    brightness = np.clip(light * np.arange(256) + 0.5, 0, 255).astype(np.uint8)
    return np.stack([table[picture] for table, picture in zip(brightness, unpack_pixels(frames), strict=True)])


def _dim(look: Look, brightness: float) -> Look:
    if brightness == 1:
        return look
    bright, deep = ((r * brightness, g * brightness, b * brightness) for r, g, b in (look.bright, look.deep))
    return dataclasses.replace(look, bright=bright, deep=deep)


def write_videos(
    folder: Path,
    clips: int,
    seed: int,
    config: SyntheticConfig,
    processes: int = 1,
    progress: Progress | None = None,
) -> None:
    """Write clips 0 ... clips-1 as folder/<class>/<index>.mp4, clip i has class i % 12; see videos.py."""
    write_kind(find_kind("sprites"), config, folder, clips, seed, processes, progress)


def _draw_motion(name: str, random: np.random.Generator, config: SyntheticConfig) -> Floats:
    """The common motion of all sprites: x, y (pixels), angle (radians, clockwise), log size; [4, T], 0 in frame 0."""
    pixel = config.size / 64
    speed = random.uniform(*config.speed) * pixel
    spin = np.deg2rad(random.uniform(*config.spin))
    growth = np.log1p(random.uniform(*config.zoom))
    circle = random.uniform(*config.orbit) * pixel
    turn = 2 * np.pi / random.uniform(11, 16)  # radians per frame
    phase = random.uniform(0, 2 * np.pi)
    shake, shake_period, axis = random.uniform(2, 3.5) * pixel, random.uniform(3, 4.5), random.uniform(0, np.pi)
    hop, hop_period = random.uniform(7, 12) * pixel, random.uniform(7, 10)

    time = np.arange(config.frames)
    still: Floats = np.zeros(config.frames)
    x, y, angle, log_size = still, still, still, still
    if name in ("left", "right"):
        x = (speed if name == "right" else -speed) * time
    elif name in ("up", "down"):
        y = (speed if name == "down" else -speed) * time
    elif name in ("spin_left", "spin_right"):
        angle = (spin if name == "spin_right" else -spin) * time
    elif name in ("grow", "shrink"):
        log_size = (growth if name == "grow" else -growth) * time
    elif name in ("orbit_left", "orbit_right"):
        sweep = phase + (turn if name == "orbit_right" else -turn) * time
        x, y = circle * np.cos(sweep), circle * np.sin(sweep)
    elif name == "shake":
        swing = shake * np.sin(phase + 2 * np.pi / shake_period * time)
        x, y = np.cos(axis) * swing, np.sin(axis) * swing
    else:
        arc = (phase / (2 * np.pi) + time / hop_period) % 1
        y = -4 * hop * arc * (1 - arc)  # a parabola from floor to floor
    tracks = np.stack([x, y, angle, log_size])
    return tracks - tracks[:, :1]


def _place_sprites(random: np.random.Generator, motion: Floats, camera: Floats, config: SyntheticConfig) -> list[Poses]:
    """Poses of N sprites on a torus that is one sprite wider than the frame, so that no wrap-around is visible."""
    pixel = config.size / 64
    smallest, largest = (pixel * radius for radius in config.radius)
    border = EXTENT * largest + 1
    stage = config.size + 2 * border
    count = int(random.integers(config.sprites[0], config.sprites[1] + 1))
    starts = _spread_positions(random, count) * stage
    x, y, angle, log_size = motion
    angles = random.uniform(0, 2 * np.pi, (count, 1)) + angle  # [N, T], like all arrays below
    loops = (random.uniform(0, 1, (count, 1)) + log_size / np.log(largest / smallest)) % 1
    columns = (starts[:, :1] + x) % stage - border + camera[:, 0]
    rows = (starts[:, 1:] + y) % stage - border + camera[:, 1]
    radii = smallest * (largest / smallest) ** loops
    opacities = np.clip(np.minimum(loops, 1 - loops) / _FADE, 0, 1)
    tracks = np.stack([columns, rows, radii, angles, opacities], axis=1).astype(np.float32)
    return [Poses(*track) for track in tracks]


def _place_distractors(random: np.random.Generator, camera: Floats, config: SyntheticConfig) -> list[Poses]:
    """Poses of small sprites that drift slowly, each in its own direction, independently of the label."""
    pixel = config.size / 64
    time, still = np.arange(config.frames), np.ones(config.frames)
    poses = []
    for _ in range(int(random.integers(config.distractors[0], config.distractors[1] + 1))):
        column, row = random.uniform(0, config.size, 2)
        drift, direction = random.uniform(0, 0.5) * pixel, random.uniform(0, 2 * np.pi)
        x = column + np.cos(direction) * drift * time + camera[:, 0]
        y = row + np.sin(direction) * drift * time + camera[:, 1]
        radius, angle = random.uniform(3, 5) * pixel * still, random.uniform(0, 2 * np.pi) * still
        poses.append(Poses(*np.stack([x, y, radius, angle, still]).astype(np.float32)))
    return poses


def _spread_positions(random: np.random.Generator, count: int) -> Floats:
    """Well-spaced positions [N, 2] on the unit torus: each is the candidate farthest from those before it."""
    candidates = random.uniform(0, 1, (count, _CANDIDATES, 2))
    chosen = candidates[:, 0].copy()
    for index in range(1, count):
        apart = np.abs(candidates[index][:, None] - chosen[:index])
        apart = np.minimum(apart, 1 - apart)
        chosen[index] = candidates[index][(apart**2).sum(-1).min(axis=1).argmax()]
    return chosen.astype(np.float32)


def _margin(config: SyntheticConfig) -> int:
    """Pixels of background beyond each side of the frame, for the camera to move over."""
    return int(np.ceil(4 * config.camera_shake * config.size / 64)) + 2


def _smooth_noise(random: np.random.Generator, frames: int, channels: int) -> Floats:
    """Noise [T, channels] with a standard deviation of about 1 that varies smoothly over a few frames."""
    raw = random.normal(size=(frames + 2, channels))
    smooth: Floats = (raw[:-2] + 2 * raw[1:-1] + raw[2:]) / np.sqrt(6)
    return smooth
