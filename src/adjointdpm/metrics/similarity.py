"""How near an image is to the true one, where that is known: PSNR and SSIM.

    PSNR = -10 log10 mean (x - y)^2
    SSIM = mean of (2 mx my + c1)(2 sxy + c2) / ((mx^2 + my^2 + c1)(sx^2 + sy^2 + c2)),   c1 = 0.01^2, c2 = 0.03^2

with means and variances under a Gaussian of 1.5 pixels (Wang et al., 2004). Higher is better in both.
"""

from jaxtyping import Float
from torch import Tensor

from .operators import GaussianBlur

__all__ = ["psnr", "ssim"]

Batch = Float[Tensor, "batch channels height width"]


def psnr(images: Batch, truth: Batch) -> Float[Tensor, "batch"]:
    """Return the peak signal-to-noise ratio of each image in dB, at most 120.

    Args:
        images: (batch, channels, height, width), in [0, 1].
        truth: of the same shape, or of one image.

    Examples:
        >>> import torch
        >>> psnr(torch.zeros(1, 3, 8, 8), torch.full((1, 3, 8, 8), 0.1)).round().tolist()
        [20.0]
    """
    return -10 * (images - truth).square().flatten(1).mean(1).clamp(min=1e-12).log10()


def ssim(images: Batch, truth: Batch) -> Float[Tensor, "batch"]:
    """Return the structural similarity of each image, at most 1.

    Args:
        images: (batch, channels, height, width), in [0, 1].
        truth: of the same shape, or of one image.

    References:
        Wang et al., 2004, IEEE Transactions on Image Processing 13.

    Examples:
        >>> import torch
        >>> x = torch.rand(1, 3, 16, 16)
        >>> ssim(x, x).round(decimals=3).tolist()
        [1.0]
    """
    truth, blur = truth.expand_as(images), GaussianBlur(1.5)
    mx, my = blur(images), blur(truth)
    sx, sy = blur(images**2) - mx**2, blur(truth**2) - my**2
    sxy = blur(images * truth) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    likeness = (2 * mx * my + c1) * (2 * sxy + c2) / ((mx**2 + my**2 + c1) * (sx + sy + c2))
    return likeness.flatten(1).mean(1)
