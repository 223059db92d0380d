"""Durations as users write them; the reader is the same as for a job spec's deadline."""

from pipeline.job_spec.deadline import parse_duration

__all__ = ["parse_duration"]
