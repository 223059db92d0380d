"""Runs of an output: listed, removed, compacted, published, examined."""
