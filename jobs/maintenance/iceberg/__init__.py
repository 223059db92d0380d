"""Runs as snapshots of Iceberg tables."""
