"""Reward functions, and how they are run so that a bad one cannot spoil a run."""
