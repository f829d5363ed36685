"""Orthonormal Hadamard matrices of the widths that vision transformers have."""

import torch
from torch import Tensor


def hadamard(order: int) -> Tensor | None:
    """An orthogonal matrix of +-1, float64 (order, order), or None for orders that this cannot reach.

    Sylvester doubling of the smallest of Paley's matrices (order q + 1 or 2 (q + 1), q prime) whose order divides by
    powers of two: 768 = 64 * 12, 384 = 32 * 12, 1280 = 64 * 20, 1152 = 32 * 36; powers of two are Sylvester's own.
    """
    base = next((matrix for matrix in map(_paley, _bases(order)) if matrix is not None), None)
    while base is not None and base.shape[0] < order:
        base = torch.cat([torch.cat([base, base], 1), torch.cat([base, -base], 1)])
    return base


def orthonormal_hadamard(order: int) -> Tensor:
    """`hadamard` divided by sqrt(order), float64 (order, order): orthonormal, entries all of one size.

    ValueError for orders without one, such as those not divisible by four.
    """
    matrix = hadamard(order)
    if matrix is None:
        raise ValueError(f"no Hadamard matrix of order {order} by doubling one of Paley's: use another width")
    return matrix / order**0.5


def _bases(order: int) -> list[int]:
    """Orders that doubling brings to `order`, smallest first."""
    if order < 1:
        return []
    halvings = (order & -order).bit_length() - 1
    return [order >> halving for halving in range(halvings, -1, -1)]


def _paley(order: int) -> Tensor | None:
    """Paley's Hadamard matrix of +-1 (his first construction, else his second), or None where neither applies."""
    one = torch.ones(1, 1, dtype=torch.float64)
    if order == 1:
        return one
    if order % 4 == 0 and _is_prime(order - 1):
        return _bordered(order - 1, skew=True) + torch.eye(order, dtype=torch.float64)
    half = order // 2
    if order % 4 == 0 and half % 4 == 2 and _is_prime(half - 1):
        inner = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
        diagonal = torch.tensor([[1.0, -1.0], [-1.0, -1.0]], dtype=torch.float64)
        return torch.kron(_bordered(half - 1, skew=False), inner) + torch.kron(torch.eye(half), diagonal)
    return None


def _bordered(q: int, *, skew: bool) -> Tensor:
    """Conference matrix of order q + 1: quadratic characters of differences modulo the prime q, bordered by ones."""
    character = torch.full((q,), -1.0, dtype=torch.float64)
    character[torch.arange(1, q).square() % q] = 1
    character[0] = 0
    numbers = torch.arange(q)
    matrix = torch.zeros(q + 1, q + 1, dtype=torch.float64)
    matrix[0, 1:] = 1
    matrix[1:, 0] = -1 if skew else 1
    matrix[1:, 1:] = character[(numbers[:, None] - numbers[None, :]) % q]
    return matrix


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))
