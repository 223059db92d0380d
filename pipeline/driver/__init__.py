"""The driver: hands shards to workers, retries, and ends the run with a summary."""
