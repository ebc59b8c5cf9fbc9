"""Optimizers and tasks of the loop's tests."""

import torch


def sgd(rate):
    return lambda leaves: torch.optim.SGD(leaves, lr=rate)
