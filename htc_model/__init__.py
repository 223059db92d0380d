"""The network: tensors in, detections out. Knows no files but weights, no Ray, no Parquet."""
