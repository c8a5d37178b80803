"""Gradient descent: steps, optimizers, schedules, checkpoints."""
