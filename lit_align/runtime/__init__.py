"""What keeps a run alive: checkpoints, seeds, run directories."""
