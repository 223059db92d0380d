"""Files that hold many images: tar and Parquet."""
