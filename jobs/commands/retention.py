"""Runs, prune, compact, publish: what becomes of an output."""
