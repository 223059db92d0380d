"""Local files and object stores: list, read, write atomically."""
