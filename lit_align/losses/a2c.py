"""Advantage actor-critic, and REINFORCE: the policy gradient itself."""

from torch import Tensor


def policy_gradient(logps: Tensor, advantages: Tensor) -> Tensor:
    """The policy loss of A2C, and of REINFORCE with any baseline.

    A3C (arXiv 1602.01783), Algorithm S3: ``-log π(y_t) A_t``.

    Its value is no measure of anything; its gradient is that of the expected reward, for samples of the
    present policy. The value loss that goes with it is :func:`lit_align.losses.ppo.squared_error`.

    Args:
        logps: ``[N]`` log-probs of the sampled tokens.
        advantages: ``[N]``, taken as constants.

    Returns:
        ``[N]`` one value per token.
    """
    return -logps * advantages.detach()
