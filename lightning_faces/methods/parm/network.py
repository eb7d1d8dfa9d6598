"""Landmark updates from a small convolutional network on the patches around the landmarks."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lightning_faces.errors import ConfigurationError
from lightning_faces.methods.parm.ranks import Ranks
from lightning_faces.methods.parm.updater import Gathered, LandmarkUpdater

SIDE = 8
"""Side of a landmark's patch in pixels."""
CHANNELS = 96
BATCH = 64


class PatchNetwork(LandmarkUpdater):
    """A network per stage that sees a patch of 8 x 8 pixels around each landmark, one channel each.

    Two convolutions with ReLU and pooling, and one linear layer to the updates of all landmarks. Patches are
    standardised over the face; those of hidden landmarks are 0. It is fitted at the end of a pass by Adam on the
    squared distance, with a cosine schedule; gradients are summed over all processes.

    Args:
        radii: Half the side of the patches at each stage.
        landmarks: Number of landmarks.
        epochs: How often the network sees each face.
        lr: Learning rate at the start.
        seed: Seed of weights and order.
    """

    scale: Tensor
    offsets: Tensor

    def __init__(self, radii: tuple[float, ...], landmarks: int, epochs: int, lr: float, seed: int) -> None:
        super().__init__(radii, landmarks, seed)
        self.epochs, self.lr = epochs, lr
        self.networks = nn.ModuleList(self._network() for _ in radii)
        for stage, network in enumerate(self.networks):
            generator = self.generator(stage, 0)
            for parameter in network.parameters():
                bound = math.sqrt(6.0 / max(parameter[0].numel(), 1)) if parameter.ndim > 1 else 0.0
                nn.init.uniform_(parameter, -bound, bound, generator=generator)
        # Nothing moves before a stage is fitted, as it has the unit 0.
        self.register_buffer("scale", torch.zeros(len(radii)))
        line = (torch.arange(SIDE, dtype=torch.float64) + 0.5) * (2 / SIDE) - 1
        grid = torch.stack((line.expand(SIDE, SIDE), line[:, None].expand(SIDE, SIDE)), dim=2).flatten(0, 1)
        drawn = torch.tensor(radii, dtype=torch.float64)[:, None, None, None] * grid
        self.register_buffer("offsets", drawn.expand(-1, landmarks, -1, -1).contiguous(), persistent=False)
        self.requires_grad_(False)

    def _network(self) -> nn.Sequential:
        layers: list[nn.Module] = []
        for channels in (self.landmarks, CHANNELS):
            layers += [nn.Conv2d(channels, CHANNELS, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(CHANNELS * (SIDE // 4) ** 2, 2 * self.landmarks))

    def sites(self, stage: int) -> Tensor:
        """A square grid."""
        return self.offsets[stage]

    def forward(self, stage: int, values: Tensor, visible: Tensor) -> Tensor:
        """The network's output."""
        output: Tensor = self.networks[stage](self._patches(values, visible))
        return (output * self.scale[stage]).reshape(len(values), self.landmarks, 2)

    def _patches(self, values: Tensor, visible: Tensor) -> Tensor:
        pixels = values.to(self.scale.dtype)
        std, mean = torch.std_mean(pixels, dim=(1, 2), keepdim=True)
        patches = (pixels - mean) / (std + 1.0) * visible[..., None]
        return patches.reshape(*patches.shape[:2], SIDE, SIDE)

    def fit(self, stage: int, gathered: Gathered, ranks: Ranks) -> None:
        """Train the stage's network."""
        device = gathered.values.device
        offsets = gathered.offsets.flatten(1)
        sums = torch.stack((torch.ones_like(offsets).sum(), offsets.square().sum())).double()
        numbers, squares = ranks.sum(sums).tolist()
        count = round(numbers / offsets.shape[1])
        if count == 0:
            raise ConfigurationError("The patch network has no training face with all targets: choose other data.")
        self.scale[stage] = math.sqrt(squares / numbers)
        offsets = offsets / self.scale[stage].clamp_min(1e-12)
        row_at = torch.full((count,), -1, device=device)
        row_at[gathered.position] = torch.arange(len(gathered.position), device=device)
        network = self.networks[stage].requires_grad_(True)
        parameters = list(network.parameters())
        optimizer = torch.optim.Adam(parameters, lr=self.lr)
        steps = self.epochs * math.ceil(count / BATCH)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        generator = self.generator(stage, 1)
        with torch.enable_grad():
            for _ in range(self.epochs):
                for batch in torch.split(torch.randperm(count, generator=generator).to(device), BATCH):
                    rows = row_at[batch]
                    rows = rows[rows >= 0]
                    patches = self._patches(gathered.values[rows], gathered.visible[rows])
                    loss = (network(patches) - offsets[rows]).square().sum() / len(batch)
                    gradients = torch.autograd.grad(loss, parameters)
                    together = ranks.sum(torch.cat([gradient.flatten() for gradient in gradients]))
                    parts = torch.split(together, [parameter.numel() for parameter in parameters])
                    for parameter, part in zip(parameters, parts):
                        parameter.grad = part.view_as(parameter)
                    optimizer.step()
                    schedule.step()
        network.requires_grad_(False)
        for parameter in parameters:
            parameter.grad = None
