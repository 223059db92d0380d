"""The worker: shards in, committed tables out."""
