"""Numbers of each sample: inner products, norms, factors and choices, against loops over the batch."""

import torch

from adjointdpm.flow.per_sample import chosen, dot, normal_rows, norms, widened


def test_numbers_of_a_sample_are_those_of_a_loop():
    draws = torch.Generator().manual_seed(0)
    a, b = (torch.randn(3, 2, 4, 5, generator=draws, dtype=torch.float64) for _ in range(2))
    numbers, mask = torch.randn(3, generator=draws, dtype=torch.float64), torch.tensor([True, False, True])
    for i in range(3):
        torch.testing.assert_close(dot(a, b)[i], (a[i] * b[i]).sum())
        torch.testing.assert_close((norms(a) / a)[i], (a[i] ** 2).sum().sqrt() / a[i])
        assert torch.equal((widened(numbers, a) * a)[i], float(numbers[i]) * a[i])
        assert torch.equal(chosen(mask, a, b)[i], a[i] if mask[i] else b[i])


def test_samples_that_are_numbers_themselves_are_taken_as_they_are():
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
    assert torch.equal(dot(a[:, None], b[:, None]), a * b)
    assert torch.equal(widened(a, b), a)
    assert torch.equal(chosen(torch.tensor([True, False]), a, b), torch.tensor([1.0, 4.0]))


def test_a_sample_of_zeros_has_a_norm_to_divide_by():
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    torch.testing.assert_close(x / norms(x), torch.tensor([[0.0, 0.0], [0.6, 0.8]]))


def test_a_row_of_normal_noise_is_that_of_its_seed_alone():
    like = torch.empty(1, 40, 50, dtype=torch.float64)
    rows = normal_rows([3, 7, 3], like)
    assert torch.equal(rows[0], rows[2])
    assert torch.equal(rows[1:2], normal_rows([7], like.expand(9, 40, 50)))
    drawn = torch.randn(40, 50, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    assert torch.equal(rows[1], drawn)
    two = rows[:2].flatten(1)
    assert float(two.mean(1).abs().max()) < 4 / 2000**0.5
    assert float((two.var(1) - 1).abs().max()) < 4 * (2 / 2000) ** 0.5
