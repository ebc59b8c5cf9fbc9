import pytest
import torch

from adjointdpm.solvers.fixed_point import gmres, solve


def linear(factor):
    """z = A z + b with A = factor times a rotation; r(z) = A z + b - z."""
    turn = torch.linalg.qr(
        torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    )[0]
    return lambda z: factor * z @ turn.T + 1 - z


def count(residual):
    calls = []

    def counted(z):
        calls.append(1)
        return residual(z)

    return counted, calls


def test_a_contraction_is_solved_in_fewer_evaluations_than_without_acceleration():
    residual, calls = count(linear(0.9))
    z = torch.zeros(3, 6, dtype=torch.float64)
    root = solve(residual, z, torch.ones_like(z), 1e-10, iterations=60)
    assert float(residual(root.z).norm()) < 1e-8
    assert len(calls) < 60  # 0.9^k reaches 1e-10 at k = 220


def test_an_expansion_is_solved_too_where_the_plain_fixed_point_diverges():
    z = torch.zeros(3, 6, dtype=torch.float64)
    root = solve(linear(3.0), z, torch.ones_like(z), 1e-8)
    assert float(root.residual.max()) <= 1e-8


def test_newton_alone_solves_a_curved_equation():
    residual = lambda z: 8 - z**3  # noqa: E731, the fixed point z + r diverges at once
    z = torch.full((2, 3), 3.0, dtype=torch.float64)
    root = solve(residual, z, z, 1e-10, iterations=1)
    torch.testing.assert_close(root.z, torch.full_like(z, 2.0))


def test_without_a_root_the_least_residual_is_returned():
    z = torch.full((1, 1), 0.7, dtype=torch.float64)
    root = solve(lambda z: -1 - z**2, z, torch.ones_like(z), 1e-8)
    assert 1 <= float(root.residual) < 1.49


def test_gmres_agrees_with_a_direct_solution():
    generator = torch.Generator().manual_seed(0)
    matrices = torch.randn(4, 9, 9, dtype=torch.float64, generator=generator)
    b = torch.randn(4, 9, dtype=torch.float64, generator=generator)
    x, left = gmres(lambda v: torch.einsum("bij,bj->bi", matrices, v), b, 1e-12, most=9)
    torch.testing.assert_close(x, torch.linalg.solve(matrices, b))
    assert left < 1e-10
    early, left = gmres(lambda v: torch.einsum("bij,bj->bi", matrices, v), b, 1e-12, most=5)
    away = (torch.einsum("bij,bj->bi", matrices, early) - b).norm(dim=1) / b.norm(dim=1)
    assert left == pytest.approx(float(away.max()))
