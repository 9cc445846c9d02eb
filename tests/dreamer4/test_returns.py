import pytest
import torch

from dreamer4.returns import lambda_returns
from dreamer4.rng import generator

REWARD, VALUE = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.1, 0.2, 0.3, 0.4]])


@pytest.mark.parametrize(
    "lam, keeps, expected",
    [
        (0.95, [1, 1, 1], [1.278988, 1.339828, 1.3988]),
        (0.0, [1, 1, 1], [0.1994, 0.2991, 1.3988]),
        (1.0, [1, 1, 1], [1.390420, 1.394604, 1.3988]),
        (0.95, [1, 0, 1], [0.00997, 0.0, 1.3988]),
    ],
)
def test_known_returns(lam, keeps, expected):
    """Invariant 44."""
    returns = lambda_returns(REWARD, torch.tensor([keeps]).float(), VALUE, 0.997, lam)
    torch.testing.assert_close(returns, torch.tensor([expected]), atol=1e-6, rtol=0)


def random_trajectory(horizon: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    noise = generator("trajectory")
    reward = torch.randn(3, horizon, generator=noise, dtype=torch.float64)
    keeps = torch.rand(3, horizon, generator=noise, dtype=torch.float64)
    return reward, keeps, torch.randn(3, horizon + 1, generator=noise, dtype=torch.float64)


def test_recursion_is_the_weighted_sum_of_n_step_returns():
    """Invariant 44."""
    reward, keeps, value = random_trajectory()
    discount, lam, horizon = 0.9, 0.7, reward.shape[1]

    def n_step(t, n):
        total, factor = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
        for k in range(t, t + n):
            total, factor = total + factor * reward[:, k], factor * discount * keeps[:, k]
        return total + factor * value[:, t + n]

    found = lambda_returns(reward, keeps, value, discount, lam)
    for t in range(horizon):
        longest = horizon - t
        expected = sum((1 - lam) * lam ** (n - 1) * n_step(t, n) for n in range(1, longest))
        torch.testing.assert_close(found[:, t], expected + lam ** (longest - 1) * n_step(t, longest))


@pytest.mark.parametrize("lam", [0.0, 0.95])
def test_consequence_of_an_action_reaches_its_return(lam):
    """Negative control: equation 10 as printed, with equal indices, doesn't see it at lambda = 0."""
    reward, keeps, value = random_trajectory()
    better = reward.clone()
    better[:, 2] += 1
    changes = lambda_returns(better, keeps, value, 0.9, lam) - lambda_returns(reward, keeps, value, 0.9, lam)
    torch.testing.assert_close(changes[:, 2], torch.ones(3, dtype=torch.float64))
    assert (changes[:, 3:] == 0).all()

    def as_printed(reward_after):
        arrived = torch.cat([torch.zeros(3, 1), reward_after], dim=1)  # r_t of frames 0 to H
        return arrived[:, :-1] + 0.9 * value[:, :-1]

    assert torch.equal(as_printed(better)[:, 2], as_printed(reward)[:, 2])


def test_bootstrap_is_the_value_of_the_last_frame():
    """Invariant 51: H + 1 values; V(h_H) counts, V(h_0) doesn't."""
    reward, keeps, value = random_trajectory()
    before = lambda_returns(reward, keeps, value, 0.9, 0.95)
    assert before.shape == reward.shape
    last, first = value.clone(), value.clone()
    last[:, -1] += 1
    first[:, 0] += 1
    assert (lambda_returns(reward, keeps, last, 0.9, 0.95) != before).all()
    assert torch.equal(lambda_returns(reward, keeps, first, 0.9, 0.95), before)
    with pytest.raises(AssertionError, match="6 rewards need 7 values"):
        lambda_returns(reward, keeps, value[:, :-1], 0.9, 0.95)


def test_nothing_counts_beyond_the_end_of_an_episode():
    reward, keeps, value = random_trajectory()
    keeps[:, 2] = 0
    before = lambda_returns(reward, keeps, value, 0.9, 0.95)
    reward[:, 3:], value[:, 3:] = 100, 100
    assert torch.equal(lambda_returns(reward, keeps, value, 0.9, 0.95)[:, :3], before[:, :3])
