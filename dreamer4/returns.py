"""Lambda-returns of imagined trajectories (paper, section 3.3, equation 10)."""

import torch
from torch import Tensor


def lambda_returns(reward_BT: Tensor, continue_BT: Tensor, value_BT: Tensor, discount: float, lam: float) -> Tensor:
    """`R[t] = r[t+1] + discount * c[t+1] * ((1 - lam) * v[t+1] + lam * R[t+1])`, and `R[H] = v[H]`.

    Equation 10 prints equal indices on both sides; taken literally R[t] would say nothing about the action chosen at
    frame t. The indices here are those of the timing contract: R[t] - v[t] is the advantage of `act_out[t]`.

    Args:
        reward_BT: `[B, H]` on arrival at frames 1 to H, so `reward_BT[:, t]` is r[t+1]. Same for `continue_BT`.
        value_BT: `[B, H + 1]` of frames 0 to H, the discounted sum of the rewards after each frame.

    Returns:
        `[B, H]`, of frames 0 to H - 1.
    """
    horizon = reward_BT.shape[1]
    assert value_BT.shape[1] == horizon + 1, f"{horizon} rewards need {horizon + 1} values, got {value_BT.shape[1]}"
    following = value_BT[:, -1]
    returns: list[Tensor] = []
    for t in reversed(range(horizon)):
        following = torch.lerp(value_BT[:, t + 1], following, lam)
        following = reward_BT[:, t] + discount * continue_BT[:, t] * following
        returns.append(following)
    return torch.stack(returns[::-1], dim=1)
