"""Shape from shading: detail that a linear face model cannot span, from the image's shading (Richardson 2016, 7).

The paper uses the method of Or-El et al. (RGBD-Fusion: Real-Time High Precision Depth Recovery, CVPR 2015): lighting by
spherical harmonics and albedo are estimated with the coarse normals, then the depth is moved until its
shading is the image's, held near the coarse depth and smooth. This is the same energy, minimised by Gauss-Newton steps
whose linear systems conjugate gradients solve, with two additions: the smooth part of the albedo absorbs what the
lighting model leaves, and shading that noise explains moves nothing.

All is in the image frame: pixels, x right, y down, depth in pixels and larger towards the viewer. A depth image of 0s
outside its mask is what ``lightning_faces.rendering`` gives.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

GREY = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in a grey image (ITU-R BT.601)."""
MODEL_ERROR = 0.2
"""Error of the shading of a known shape by harmonics, over its local variation."""


@dataclass(eq=False)
class RefinedDepth:
    """What :func:`shape_from_shading` gives.

    Attributes:
        depth: ``[B, 1, H, W]`` pixels, the coarse depth with detail; 0 outside the mask.
        normals: ``[B, 3, H, W]``, unit normals of it, x right, y down, z towards the viewer; 0 outside the mask.
        albedo: ``[B, 1, H, W]``, the smooth albedo of the grey image, up to one factor with the lighting.
        lighting: ``[B, 9]``, coefficients of the spherical harmonics of the normal up to second order.
        mask: Bool ``[B, 1, H, W]``, where the refinement looked: the mask without the pixels at its border.
    """

    depth: Tensor
    normals: Tensor
    albedo: Tensor
    lighting: Tensor
    mask: Tensor


def shape_from_shading(
    image: Tensor,
    depth: Tensor,
    mask: Tensor,
    smooth_albedo: float = 3.0,
    fidelity: float = 2e-3,
    smoothness: float = 1e-3,
    significance: float = 4.0,
    steps: int = 3,
    iterations: int = 40,
) -> RefinedDepth:
    """Refine coarse depth images by the shading of their photographs.

    Args:
        image: ``[B, 3, H, W]`` or grey ``[B, 1, H, W]``, in [0, 1].
        depth: Coarse depth ``[B, 1, H, W]`` in pixels, larger towards the viewer.
        mask: Bool ``[B, 1, H, W]``, where the depth is known.
        smooth_albedo: Standard deviation in pixels of the window in which albedo counts as constant.
        fidelity: Weight of the squared distance to the coarse depth.
        smoothness: Weight of the squared Laplacian of what is added to it.
        significance: How many times the variance of noise and of the lighting model's error the shading must vary
            to move anything. Where a surface faces the light its shading says nothing, and nothing moves.
        steps: Gauss-Newton steps.
        iterations: Conjugate-gradient iterations of a step.

    Returns:
        The refined depth; see :class:`RefinedDepth`. Of a face without a pixel in its mask, the coarse depth.

    Example:
        >>> image, depth = torch.full((1, 1, 32, 32), 0.5), torch.zeros(1, 1, 32, 32)
        >>> refined = shape_from_shading(image, depth, torch.ones(1, 1, 32, 32, dtype=torch.bool))
        >>> float(refined.depth.abs().max())  # an even image of a plane has no detail
        0.0
    """
    grey = image if image.shape[1] == 1 else (image * image.new_tensor(GREY)[:, None, None]).sum(dim=1, keepdim=True)
    mask = mask.bool()
    inside = _eroded(mask, 2)
    weight = inside.to(grey.dtype)
    coarse = torch.where(mask, depth, 0.0)
    normals = normals_of_depth(coarse, mask)
    lighting = _estimate_lighting(grey, normals, weight)
    shading = _shade(lighting, normals).clamp(min=0.05)
    albedo = _smooth(grey * shading, weight, smooth_albedo) / _smooth(shading.square(), weight, smooth_albedo).clamp(
        min=1e-6
    )
    target = shading + _significant(grey, albedo * shading, weight, significance) / albedo.clamp(min=1e-3)
    # Dark pixels say little: the error counts in units of the image.
    trust = weight * albedo
    added = torch.zeros_like(coarse)
    for _ in range(steps):
        across, down = _gradient(coarse + added, mask)
        length = (1 + across.square() + down.square()).sqrt()
        n = torch.cat((-across, -down, torch.ones_like(across)), dim=1) / length
        slope = _shading_slope(lighting, n)
        along = (slope * n).sum(dim=1, keepdim=True)
        by_across = -(slope[:, :1] + along * across / length) / length
        by_down = -(slope[:, 1:2] + along * down / length) / length
        error = trust * (target - _shade(lighting, n))

        def system(change: Tensor, by_across: Tensor = by_across, by_down: Tensor = by_down) -> Tensor:
            dx, dy = _gradient(change, mask)
            shaded = trust.square() * (by_across * dx + by_down * dy)
            bent = _laplacian(_laplacian(change, mask), mask)
            return _divergence(by_across * shaded, by_down * shaded, mask) + fidelity * change + smoothness * bent

        pull = _divergence(trust * by_across * error, trust * by_down * error, mask)
        pull = pull - fidelity * added - smoothness * _laplacian(_laplacian(added, mask), mask)
        added = added + _conjugate_gradients(system, pull, iterations)
    refined = coarse + added
    return RefinedDepth(refined, normals_of_depth(refined, mask), albedo * weight, lighting, inside)


def normals_of_depth(depth: Tensor, mask: Tensor) -> Tensor:
    """Unit normals ``[B, 3, H, W]`` (x right, y down, z towards the viewer) of depth images ``[B, 1, H, W]``.

    Gradients are central differences between pixels in the mask, one-sided at its border; 0 outside it.
    """
    across, down = _gradient(depth, mask)
    normals = torch.cat((-across, -down, torch.ones_like(across)), dim=1)
    return nn.functional.normalize(normals, dim=1) * mask


def depth_mesh(depth: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The surface of one depth image as a mesh with a vertex per pixel.

    Args:
        depth: ``[1, H, W]`` pixels.
        mask: Bool ``[1, H, W]``.

    Returns:
        Vertices ``[N, 3]``, image frame, and triangles int64 ``[F, 3]``, clockwise in the image seen from the viewer,
        that is counter-clockwise where y points up.

    Example:
        >>> vertices, faces = depth_mesh(torch.zeros(1, 2, 2), torch.ones(1, 2, 2, dtype=torch.bool))
        >>> faces.tolist()
        [[0, 2, 1], [1, 2, 3]]
    """
    shown = mask[0]
    number = torch.full(shown.shape, -1, dtype=torch.int64, device=depth.device)
    number[shown] = torch.arange(int(shown.sum()), device=depth.device)
    rows, columns = shown.nonzero(as_tuple=True)
    vertices = torch.stack((columns.to(depth.dtype), rows.to(depth.dtype), depth[0][shown]), dim=1)
    a, b, c, d = number[:-1, :-1], number[:-1, 1:], number[1:, :-1], number[1:, 1:]
    corners = torch.stack((torch.stack((a, c, b), dim=-1), torch.stack((b, c, d), dim=-1)), dim=2).reshape(-1, 3)
    return vertices, corners[(corners >= 0).all(dim=1)]


def harmonics(normals: Tensor) -> Tensor:
    """Spherical harmonics of up to second order ``[B, 9, H, W]``, without their constant factors."""
    x, y, z = (normals[:, i : i + 1] for i in range(3))
    second = (x * y, x * z, y * z, x.square() - y.square(), 3 * z.square() - 1)
    return torch.cat((torch.ones_like(x), x, y, z, *second), dim=1)


def _shade(lighting: Tensor, normals: Tensor) -> Tensor:
    return (lighting[:, :, None, None] * harmonics(normals)).sum(dim=1, keepdim=True)


def _shading_slope(lighting: Tensor, normals: Tensor) -> Tensor:
    """Derivative of the shading by the normal ``[B, 3, H, W]``."""
    x, y, z = (normals[:, i : i + 1] for i in range(3))
    l1, l2, l3, l4, l5, l6, l7, l8 = (lighting[:, i, None, None, None] for i in range(1, 9))
    by_x = l1 + l4 * y + l5 * z + 2 * l7 * x
    by_y = l2 + l4 * x + l6 * z - 2 * l7 * y
    by_z = l3 + l5 * x + l6 * y + 6 * l8 * z
    return torch.cat((by_x, by_y, by_z), dim=1)


def _estimate_lighting(grey: Tensor, normals: Tensor, weight: Tensor) -> Tensor:
    """Least squares of the image by harmonics of the normals, without the darkest twentieth."""
    basis = harmonics(normals).flatten(2)
    values, counts = grey.flatten(1), weight.flatten(1)
    # Eyes, nostrils, the open mouth and cast shadows are dark and no Lambertian surface.
    floor = torch.where(counts > 0, values, float("nan")).nanquantile(0.05, dim=1, keepdim=True)
    counts = counts * (values >= floor.nan_to_num())
    weighted = basis * counts[:, None]
    gram = weighted @ basis.transpose(1, 2)
    small = 1e-4 * (1 + counts.sum(dim=1)[:, None, None])
    gram = gram + small * torch.eye(9, dtype=grey.dtype, device=grey.device)
    return torch.linalg.solve(gram, (weighted @ values[..., None]))[..., 0]


def _significant(grey: Tensor, coarse: Tensor, weight: Tensor, significance: float) -> Tensor:
    """What the image has beyond the coarse shading, without what noise and the model of light explain (Wiener)."""
    residual = grey - coarse
    calm = _smooth(residual, weight, 0.7)
    # White noise, from second differences, which a smooth signal hardly has (Immerkaer 1996).
    kernel = residual.new_tensor([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]])[None, None]
    rough = nn.functional.conv2d(residual, kernel, padding=1) / 6
    full = _eroded(weight > 0, 1).to(residual.dtype)
    noise = (rough.square() * full).sum(dim=(1, 2, 3)) / full.sum(dim=(1, 2, 3)).clamp(min=1)
    # What a Gaussian of 0.7 pixels leaves of the variance of white noise.
    left = float(_gaussian(0.7, residual.dtype, residual.device).square().sum() ** 2)
    # Where the coarse shape is bent already, its shading is right to some tenths only: highlights, shadows.
    bent = _smooth((coarse - _smooth(coarse, weight, 3.0)).square(), weight, 3.0)
    expected = left * noise[:, None, None, None] + MODEL_ERROR**2 * bent
    variance = _smooth(calm.square(), weight, 3.0)
    share = 1 - significance * expected / variance.clamp(min=1e-12)
    return calm * share.clamp(min=0.0) * weight


def _gaussian(sigma: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    reach = max(1, int(3 * sigma + 0.5))
    steps = torch.arange(-reach, reach + 1, dtype=dtype, device=device)
    kernel = torch.exp(-0.5 * (steps / sigma).square())
    return kernel / kernel.sum()


def _smooth(values: Tensor, weight: Tensor, sigma: float) -> Tensor:
    """Gaussian mean of the values ``[B, 1, H, W]`` with weights."""
    kernel = _gaussian(sigma, values.dtype, values.device)
    reach = len(kernel) // 2
    planes = torch.cat((values * weight, weight), dim=1).flatten(0, 1)[:, None]
    planes = nn.functional.conv2d(planes, kernel[None, None, None], padding=(0, reach))
    planes = nn.functional.conv2d(planes, kernel[None, None, :, None], padding=(reach, 0))
    planes = planes.reshape(len(values), 2, *values.shape[2:])
    return planes[:, :1] / planes[:, 1:].clamp(min=1e-6)


def _eroded(mask: Tensor, pixels: int) -> Tensor:
    outside = (~mask).float()
    return nn.functional.max_pool2d(outside, 2 * pixels + 1, stride=1, padding=pixels) == 0


def _neighbours(mask: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Whether the next and the previous pixel along a dimension are in the mask, as those that count in it."""
    after = torch.zeros_like(mask)
    size = mask.shape[dim]
    after.narrow(dim, 0, size - 1).copy_(mask.narrow(dim, 1, size - 1))
    before = torch.zeros_like(mask)
    before.narrow(dim, 1, size - 1).copy_(mask.narrow(dim, 0, size - 1))
    return after & mask, before & mask


def _taps(mask: Tensor, dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Weights of the forward and the backward difference in the derivative: halves, or one where it is the only."""
    after, before = (side.to(dtype) for side in _neighbours(mask, dim))
    total = (after + before).clamp(min=1)
    return after / total, before / total


def _forward(values: Tensor, dim: int) -> Tensor:
    return values.roll(-1, dim) - values


def _gradient(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Derivatives along x and y ``[B, 1, H, W]`` between pixels in the mask."""
    parts = []
    for dim in (3, 2):
        after, before = _taps(mask, dim, values.dtype)
        difference = _forward(values, dim)
        parts.append(after * difference + before * difference.roll(1, dim))
    return parts[0], parts[1]


def _divergence(across: Tensor, down: Tensor, mask: Tensor) -> Tensor:
    """Adjoint of :func:`_gradient`."""
    total = torch.zeros_like(across)
    for dim, values in ((3, across), (2, down)):
        after, before = _taps(mask, dim, values.dtype)
        flow = after * values + (before * values).roll(-1, dim)
        total = total + flow.roll(1, dim) - flow
    return total


def _laplacian(values: Tensor, mask: Tensor) -> Tensor:
    """Sum of the differences to the neighbours in the mask; symmetric."""
    total = torch.zeros_like(values)
    for dim in (3, 2):
        after, _ = _neighbours(mask, dim)
        flow = after.to(values.dtype) * _forward(values, dim)
        total = total + flow - flow.roll(1, dim)
    return total


def _conjugate_gradients(system: Callable[[Tensor], Tensor], right: Tensor, iterations: int) -> Tensor:
    """Solve a positive definite system per image."""

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(dim=(1, 2, 3), keepdim=True)

    solution = torch.zeros_like(right)
    residual, direction = right.clone(), right.clone()
    size = dot(residual, residual)
    for _ in range(iterations):
        image = system(direction)
        step = size / dot(direction, image).clamp(min=1e-30)
        solution = solution + step * direction
        residual = residual - step * image
        after = dot(residual, residual)
        direction = residual + after / size.clamp(min=1e-30) * direction
        size = after
    return solution
