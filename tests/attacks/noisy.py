"""Small classifiers of the tests: linear ones, plain and with noise of the global generator."""

import torch
from torch import nn


class Linear(nn.Module):
    """Logits W x."""

    def __init__(self, classes=4, size=(1, 3, 4), seed=0):
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        number = size[0] * size[1] * size[2]
        self.weight = nn.Parameter(torch.randn(classes, number, generator=draw, dtype=torch.float64), False)

    def forward(self, x):
        return x.flatten(1) @ self.weight.T


class Noisy(Linear):
    """Logits W tanh(x + spread xi) of a fresh draw."""

    def __init__(self, spread=1.0, **more):
        super().__init__(**more)
        self.spread = spread

    def forward(self, x):
        return super().forward(torch.tanh(x + self.spread * torch.randn_like(x)))


def images(number=3, size=(1, 3, 4), seed=1):
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(60, 200, (number, *size), generator=draw).double() / 255
