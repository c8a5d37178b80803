"""Keeps a sample of the images that were served, with their answers, to be labelled and trained on."""
