"""From rewards of single tokens to what each token is worth: returns and advantages of ragged sequences.

The recursion ``x_t = b_t + a_t x_{t+1}`` runs over all sequences of a flat batch at once, in about
``log2 N`` vector operations: no padding, and no loop over tokens.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Estimate(NamedTuple):
    """Advantages, and what the value function is to learn.

    Attributes:
        advantages: ``[N]``; 0 where a token does not count.
        returns: ``[N]`` advantages plus values; 0 where a token does not count.
    """

    advantages: Tensor
    returns: Tensor


def gae(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    sequence: Tensor,
    *,
    gamma: float = 1.0,
    gae_lambda: float = 0.95,
    final_values: Tensor | None = None,
) -> Estimate:
    """Generalised advantage estimation.

    GAE (arXiv 1506.02438) Eq. 11, 16: ``δ_t = r_t + γ V_{t+1} - V_t``, ``A_t = δ_t + γλ A_{t+1}``.

    Tokens that do not count (tool output, user turns) are no steps of the policy: the token before such a
    gap and the one after it are neighbours. (TRL leaves them in with value and reward 0, so that the token
    before a gap bootstraps from 0.)

    Args:
        rewards: ``[N]`` reward of each token.
        values: ``[N]`` value of the state in which each token is chosen.
        mask: ``[N]`` non-zero where the policy chose the token.
        sequence: ``[N]`` index of the sequence each token belongs to, ascending.
        gamma: discount per token.
        gae_lambda: 0 is the one-step error, 1 the whole return less the value.
        final_values: ``[C]`` value of the state after the last token, for sequences that were cut off and
            would have gone on; 0 where it is ``None``.

    Returns:
        Advantages and returns, without gradient.

    >>> one = torch.tensor([1, 1])
    >>> gae(torch.tensor([0.0, 1.0]), torch.tensor([0.5, 0.25]), one, one - 1, gae_lambda=1.0)
    Estimate(advantages=tensor([0.5000, 0.7500]), returns=tensor([1., 1.]))
    """
    _check(rewards, values, mask, sequence)
    kept = mask != 0
    rewards, values, owner = (x.detach()[kept] for x in (rewards, values, sequence))
    going_on = _same_as_next(owner)
    if final_values is None:
        after_last = torch.zeros_like(values)
    else:
        after_last = final_values.detach().to(values.dtype)[owner]
    next_values = torch.where(going_on, _shift(values, 1), after_last)
    errors = rewards + gamma * next_values - values
    advantages = _reverse_recursion(errors, going_on.to(errors.dtype) * (gamma * gae_lambda))
    return Estimate(_spread(advantages, kept), _spread(advantages + values, kept))


def discounted_returns(rewards: Tensor, mask: Tensor, sequence: Tensor, *, gamma: float = 1.0) -> Tensor:
    """Sum of the rewards from each token to the end of its sequence.

    ``G_t = r_t + γ G_{t+1}``; the rewards of tokens that do not count are left out.

    Args:
        rewards: ``[N]`` reward of each token.
        mask: ``[N]`` non-zero where the policy chose the token.
        sequence: ``[N]`` index of the sequence each token belongs to, ascending.
        gamma: discount per token.

    Returns:
        ``[N]`` without gradient; 0 where a token does not count.
    """
    _check(rewards, rewards, mask, sequence)
    kept = mask != 0
    rewards, owner = rewards.detach()[kept], sequence[kept]
    return _spread(_reverse_recursion(rewards, _same_as_next(owner).to(rewards.dtype) * gamma), kept)


def _reverse_recursion(inputs: Tensor, decay: Tensor) -> Tensor:
    """Solve ``x_t = inputs_t + decay_t x_{t+1}``, doubling the horizon each time round."""
    total = inputs
    span = 1
    while span < len(inputs):
        # where, not a product alone: 0 * NaN would carry one sequence's fault into its neighbour.
        total = torch.where(decay != 0, total + decay * _shift(total, span), total)
        decay = torch.where(decay != 0, decay * _shift(decay, span), 0)
        span *= 2
    return total


def _shift(values: Tensor, by: int) -> Tensor:
    return torch.cat((values[by:], values.new_zeros(min(by, len(values)))))


def _same_as_next(owner: Tensor) -> Tensor:
    last = torch.zeros(min(1, len(owner)), dtype=torch.bool, device=owner.device)
    return torch.cat((owner[1:] == owner[:-1], last))


def _spread(values: Tensor, kept: Tensor) -> Tensor:
    whole = values.new_zeros(len(kept))
    whole[kept] = values
    return whole


def _check(rewards: Tensor, values: Tensor, mask: Tensor, sequence: Tensor) -> None:
    shapes = [list(x.shape) for x in (rewards, values, mask, sequence)]
    if any(len(shape) != 1 or shape != shapes[0] for shape in shapes):
        raise ValueError(
            f"rewards, values, mask and sequence must be flat and of one length [N], got shapes {shapes}; "
            "take the padding out of a padded batch first"
        )
