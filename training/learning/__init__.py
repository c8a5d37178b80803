"""Training: steps, optimizers, schedules, checkpoints, and the choice of the learning method."""
