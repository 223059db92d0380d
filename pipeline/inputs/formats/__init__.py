"""Image formats: detection, and what Pillow does not read."""
