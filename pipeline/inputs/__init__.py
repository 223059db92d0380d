"""From an input URI to images: list, read, decode."""
