"""Reward functions: those of the package, how anyone's are called, and what happens when they fail.

A reward function is any callable, sync or async, that judges a batch of completions and returns one
number for each. It is given by keyword what its signature names; see
`lit_align.rewards.inputs.RewardInputs` for what there is.
"""
