"""The moves of L-BFGS against the dense formula of BFGS."""

import torch

from adjointdpm.solvers.lbfgs import lbfgs_move


def draws(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def dense(gradient, pairs):
    """H g by the update of BFGS, from H = s.y / y.y of the last pair."""
    s, y = pairs[-1]
    identity = torch.eye(len(gradient), dtype=torch.float64)
    H = (s @ y) / (y @ y) * identity
    for s, y in pairs:
        left = identity - torch.outer(s, y) / (s @ y)
        H = left @ H @ left.T + torch.outer(s, s) / (s @ y)
    return H @ gradient


def test_a_move_is_that_of_dense_bfgs_for_each_sample():
    hessians = draws(2, 5, 5)
    hessians = hessians @ hessians.mT + torch.eye(5, dtype=torch.float64)
    moves = draws(3, 2, 5)
    pairs = [(s, (hessians @ s[..., None])[..., 0]) for s in moves]
    gradient = draws(2, 5)
    found = lbfgs_move(gradient, pairs, torch.ones(2, dtype=torch.float64))
    for i in range(2):
        wanted = dense(gradient[i], [(s[i], y[i]) for s, y in pairs])
        torch.testing.assert_close(found[i], wanted, rtol=1e-10, atol=1e-10)
    # The secant equation of the last pair, H y = s.
    torch.testing.assert_close(
        lbfgs_move(pairs[-1][1], pairs, torch.ones(2, dtype=torch.float64)), pairs[-1][0]
    )


def test_a_pair_without_positive_curvature_is_not_used():
    gradient, s = draws(2, 4), draws(2, 4)
    y = torch.stack([-s[0], 2 * s[1]])
    length = torch.tensor([0.25, 0.25], dtype=torch.float64)
    found = lbfgs_move(gradient, [(s, y)], length)
    torch.testing.assert_close(found[0], 0.25 * gradient[0])
    torch.testing.assert_close(found[1], dense(gradient[1], [(s[1], y[1])]))
