"""Weights files on this machine, and the identity of a model."""
