"""Everything of a picture but who it shows: drawing of view, light, background, things in the way and the camera.

As in ``person.py`` the order of the numbers decides what a seed looks like.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lightning_faces.geometry import euler_to_matrix
from lightning_faces.rendering.synthesis.noise import Draws
from lightning_faces.rendering.synthesis.options import SynthesisOptions
from lightning_faces.rendering.synthesis.person import GAMMA, linear
from lightning_faces.rendering.synthesis.scene import Background, Exposure, Gaze, Light, Occlusion, View

LIGHTS = 3
BACKGROUND_SHAPES = 6
OCCLUDERS = 2
LINES = 2


def draw_view(view: Draws, seeds: Sequence[int], yaw_thirds: bool, options: SynthesisOptions) -> View:
    """Pose, camera and gaze; with ``yaw_thirds`` |yaw| is uniform in 0-30, 30-60 or 60-90 degrees, by the seed."""
    spread = view.uniform(-options.yaw_range, options.yaw_range)
    near = view.normal(std=options.yaw_std)
    yaw = torch.where(view.happens(options.yaw_uniform) > 0.5, spread, near).clamp(
        -options.yaw_range, options.yaw_range
    )
    third = torch.tensor([int(seed) % 3 for seed in seeds], dtype=torch.float64)[:, None]
    even = 30.0 * (third + view.uniform()) * (2.0 * view.happens(0.5) - 1.0)
    if yaw_thirds:
        yaw = even
    # Turned far, a large pitch or roll leaves the view of any photograph.
    pitch = view.normal(std=options.pitch_std)
    roll = view.normal(std=options.roll_std)
    angles = torch.cat((pitch, yaw, roll), dim=1) * (math.pi / 180.0)
    follow = torch.cat((view.uniform(0.0, 0.4), view.uniform(0.1, 1.0), view.uniform(0.0, 0.5)), dim=1)
    torso = angles * follow + view.normal(std=0.09, count=3)
    return View(
        angles=angles,
        rotation=euler_to_matrix(angles),
        torso_rotation=euler_to_matrix(torso),
        distance=torch.where(view.happens(options.perspective) > 0.5, torch.exp(view.uniform(6.1, 7.6)), 1e9),
        place=view.normal(std=0.012, count=2),
        zoom=torch.exp(view.normal(std=0.03)),
        gaze=Gaze(
            offset=torch.cat((view.normal(std=0.9), view.normal(std=0.5)), dim=1),
            glint=torch.cat((view.normal(std=1.5), view.normal(1.0, 1.0)), dim=1),
            brightness=view.happens(0.7) * view.uniform(0.05, 0.6),
        ),
    )


def draw_light(view: Draws, skin: Tensor, options: SynthesisOptions) -> Light:
    """Lights, and an exposure that suits skin of a colour ``[B, 3]``."""
    directions, colours = [], []
    for k in range(LIGHTS):
        around = view.normal(std=1.0) if k < 2 else math.pi + view.normal(std=0.9)
        up = view.normal(0.5, 0.5)
        directions.append(torch.cat((around.sin() * up.cos(), up.sin(), around.cos() * up.cos()), dim=1))
        power = view.uniform(0.6, 1.6) if k == 0 else view.happens(0.5) * view.uniform(0.0, 1.2 if k == 1 else 1.6)
        warm = view.normal(0.05, 0.12)
        colours.append(power * torch.exp(torch.cat((warm, 0.0 * warm, -warm), 1) + view.normal(std=0.04, count=3)))
    sharpness = torch.exp(view.uniform(1.6, 4.2))
    level = view.uniform(0.12, 0.85)
    tint = view.normal(std=0.09)
    sky = level * torch.exp(torch.cat((-tint, 0.0 * tint, tint), 1))
    ground = level * view.uniform(0.15, 0.9) * torch.exp(torch.cat((tint, 0.3 * tint, -tint), 1))
    wrap = view.uniform(0.05, 0.35)
    brightness = (skin * torch.tensor([[0.3, 0.6, 0.1]])).sum(1, keepdim=True)
    key = 0.23 * (brightness / 0.3) ** 0.55 * torch.exp(view.normal(std=0.28))
    dark = view.happens(options.dark)
    key = key * torch.where(dark > 0.5, torch.exp(view.uniform(-2.6, -0.7)), 1.0)
    light = Light(torch.cat(directions, dim=1), torch.cat(colours, dim=1), sharpness, sky, ground, wrap, key)
    if options.lights:
        return light
    zero = torch.zeros_like(sky)
    return replace(
        light,
        directions=torch.cat((zero[:, :2] + 0.2, zero[:, :1] + 1.0, zero, zero), 1),
        colours=torch.cat((zero + 0.8, zero, zero), 1),
        sky=zero + 0.5,
        ground=zero + 0.5,
    )


def draw_background(view: Draws, options: SynthesisOptions) -> Background:
    """Gradient, shapes and noise, and which of the user's photographs would be taken."""
    grey = view.uniform(0.02, 0.98)
    extreme = view.uniform()
    grey = torch.where(extreme < 0.16, 1.05, torch.where(extreme < 0.32, -0.02, grey))
    vivid = 0.04 + 0.16 * view.uniform() ** 2
    first = (grey + vivid * view.normal(count=3)).clamp(0.0, 1.0)
    second = (first + view.normal(std=0.2) + 0.6 * vivid * view.normal(count=3)).clamp(0.0, 1.0)
    direction, steep = view.uniform(0.0, 6.28), view.uniform(0.2, 3.0)
    plain = view.happens(0.2)
    shapes = []
    for _ in range(BACKGROUND_SHAPES):
        present = view.happens(0.6) * (1.0 - plain)
        shapes.append(torch.cat((
            view.uniform(-1.2, 1.2, 2), view.normal(std=0.6), torch.exp(view.uniform(-3.0, 0.4, 2)),
            view.happens(0.6), torch.exp(view.uniform(0.7, 3.6)), present * view.uniform(0.3, 1.0),
        ), 1))  # fmt: skip
    light_dark = view.uniform(0.0, 1.0, BACKGROUND_SHAPES).repeat_interleave(3, 1)
    colours = (light_dark + vivid * view.normal(count=3 * BACKGROUND_SHAPES)).clamp(0.0, 1.0)
    noise_scale, noise_place = torch.exp(view.uniform(-2.8, 0.2, 2)), view.uniform(count=2)
    strength = view.uniform(0.0, 1.0) ** 1.5 * (1.0 - plain)
    background = Background(
        first=first,
        second=second,
        direction=torch.cat((direction.cos(), direction.sin()), 1) * steep,
        shapes=torch.cat(shapes, 1),
        colours=colours,
        noise_scale=noise_scale,
        noise_place=noise_place,
        noise=strength * torch.cat((
            view.normal(std=0.04, count=3), view.normal(std=0.2), view.normal(std=0.16), view.uniform(0.0, 0.05),
        ), 1),
        photograph=view.happens(0.5),
        photograph_crop=view.uniform(count=5),
    )  # fmt: skip
    if options.backgrounds:
        return background
    uncovered = torch.tensor([1.0] * 7 + [0.0], dtype=torch.float64).repeat(BACKGROUND_SHAPES)
    return replace(
        background,
        second=first,
        direction=torch.zeros_like(background.direction),
        shapes=background.shapes * uncovered,
        noise=torch.zeros_like(background.noise),
        photograph=torch.zeros_like(background.photograph),
    )


def draw_occlusion(view: Draws, options: SynthesisOptions) -> Occlusion:
    """Ellipses and bars, lines, and edges that are cut off."""
    some = view.happens(0.3) if options.occluders else 0.0 * view.happens(0.3)
    shapes, colours = [], []
    skin = linear(torch.tensor([200.0, 150.0, 120.0], dtype=torch.float64)) ** (1.0 / GAMMA)
    for k in range(OCCLUDERS):
        present = some * (1.0 if k == 0 else view.happens(0.4))
        long = torch.exp(view.uniform(-2.2, -0.8))
        shapes.append(torch.cat((
            view.normal(std=0.5, count=2), view.uniform(0.0, 3.14), long, long * torch.exp(view.uniform(-1.6, 0.5)),
            torch.exp(view.uniform(0.4, 2.0)), torch.exp(view.uniform(2.0, 4.0)),
            present * torch.where(view.happens(0.8) > 0.5, 1.0, view.uniform(0.3, 0.9)),
        ), 1))  # fmt: skip
        hand = skin * torch.exp(view.normal(std=0.3) + view.normal(std=0.06, count=3))
        colours.append(torch.where(view.happens(0.4) > 0.5, hand, view.uniform(0.0, 1.0, 3)).clamp(0.0, 1.0))
    lines = []
    for _ in range(LINES):
        present = view.happens(0.07 if options.occluders else 0.0)
        lines.append(torch.cat((
            view.uniform(0.0, 3.14), view.uniform(-0.6, 0.6), view.normal(std=0.3),
            torch.exp(view.uniform(-5.0, -2.8)), view.uniform(0.0, 1.0, 2), present * view.uniform(0.5, 1.0),
        ), 1))  # fmt: skip
    cut, where = view.uniform(), view.uniform(0.45, 0.85)
    scale = 1.0 if options.occluders else 0.0
    left, right, below = (
        torch.where((cut > low * scale) & (cut < high * scale), where, 9.0)
        for low, high in ((0.0, 0.05), (0.05, 0.1), (0.1, 0.18))
    )
    return Occlusion(
        shapes=torch.cat(shapes, 1),
        colours=torch.cat(colours, 1),
        lines=torch.cat(lines, 1),
        cut=torch.cat((-left, right, below, view.happens(0.15) * view.uniform()), 1),
    )


def draw_exposure(view: Draws, options: SynthesisOptions, image_size: int) -> Exposure:
    """Faults of cameras and files for pictures of ``image_size`` pixels."""
    soft = torch.exp(view.uniform(-0.8, 0.1))
    very = view.happens(0.1) * view.uniform(0.2, 1.2)
    motion = view.happens(0.04) * view.uniform(0.5, 1.6)
    sideways = view.happens(0.5)
    blur = torch.cat((soft + very + motion * sideways, soft + very + motion * (1.0 - sideways)), 1)
    blur = (blur * (image_size / 136.0 * options.blur)).clamp_min(0.45)
    saturation = torch.exp(view.normal(std=0.25)) * (1.0 - view.happens(options.grey))
    cast = torch.exp(view.normal(std=0.05, count=3) * torch.where(view.happens(0.12) > 0.5, 4.0, 1.0))
    middle, contrast = view.uniform(0.3, 0.6), torch.exp(view.normal(0.06, 0.22))
    brightness, gamma = view.normal(std=0.05), torch.exp(view.normal(std=0.14))
    noisy = view.uniform() ** 3
    luma_noise = (noisy * view.uniform(0.0, 0.05) + 0.003) * options.noise
    chroma_noise = (noisy * view.uniform(0.0, 0.03) + 0.001) * options.noise
    grain_place = view.uniform(count=2)
    quality = view.uniform(25.0, 95.0)
    # As libjpeg turns quality into a factor of the quantisation tables.
    jpeg = view.happens(options.jpeg) * torch.where(quality < 50.0, 50.0 / quality, 2.0 - quality / 50.0)
    if options.degradation:
        return Exposure(
            blur, saturation, cast, middle, contrast, brightness, gamma, luma_noise, chroma_noise, grain_place, jpeg
        )
    zero, one = torch.zeros_like(middle), torch.ones_like(middle)
    return Exposure(
        torch.full_like(blur, 0.5), one, torch.ones_like(cast), middle, one, zero, one, zero, zero, grain_place, zero
    )
