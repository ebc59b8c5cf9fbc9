"""The inverse of a whole map and its gradient, against closed forms and finite differences."""

import torch

from adjointdpm.adjoints.whole_inversion import WholeInverse


def matrix():
    generator = torch.Generator().manual_seed(0)
    return torch.eye(6, dtype=torch.float64) + 0.3 * torch.randn(
        6, 6, dtype=torch.float64, generator=generator
    )


def target(rows=3):
    return torch.randn(rows, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_a_linear_map_is_inverted_and_its_gradient_is_the_transposed_inverse():
    a, b = matrix(), torch.zeros(6, dtype=torch.float64, requires_grad=True)
    x = target().requires_grad_()
    inverse = WholeInverse(lambda z: z @ a.T + b, lambda y: 0.8 * y)
    y, away = inverse.found(x, 1e-12)
    z = inverse.noise(y, x)
    assert float(away.max()) <= 1e-12
    torch.testing.assert_close(z, x.detach() @ torch.linalg.inv(a).T, rtol=1e-9, atol=1e-9)
    g = target().flip(0)
    to_x, to_b = torch.autograd.grad(z, [x, b], g)
    expected = g @ torch.linalg.inv(a)
    torch.testing.assert_close(to_x, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(to_b, -expected.sum(0), rtol=1e-5, atol=1e-5)


def test_the_gradient_of_a_nonlinear_inverse_is_that_of_finite_differences():
    a = matrix()

    def inverted(x, c):
        inverse = WholeInverse(lambda z: z @ a.T + 0.3 * (c * z).sin(), lambda y: y - 0.1 * y.tanh())
        return inverse.noise(inverse.found(x, 1e-12)[0], x)

    c = torch.full((6,), 0.7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(inverted, (target(2).requires_grad_(), c), atol=1e-4, rtol=1e-4)


def test_without_a_gradient_nothing_is_differentiated():
    calls = []
    inverse = WholeInverse(lambda z: calls.append(z.requires_grad) or 2 * z, lambda y: 0.5 * y)
    z = inverse.noise(inverse.found(target(), 1e-9)[0], target())
    assert not z.requires_grad
    assert not any(calls)


def test_a_target_out_of_reach_is_left_at_its_distance():
    inverse = WholeInverse(lambda z: z.tanh(), lambda y: y)
    away = inverse.found(torch.full((1, 1), 2.0, dtype=torch.float64), 1e-6)[1]
    assert 0.4 < float(away) <= 0.62  # tanh reaches 1, half of 2
