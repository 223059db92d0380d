"""What becomes of an output: its runs listed, removed, compacted and published."""
