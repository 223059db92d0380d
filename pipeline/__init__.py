"""The run: shards in, committed Parquet out."""
