"""Loads a network and runs it on batches of images."""
