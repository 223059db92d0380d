"""Weights: published checkpoints, files, conversion, and values without any file."""
