"""What is asked of an output: SQL, overlays, average precision, status."""
