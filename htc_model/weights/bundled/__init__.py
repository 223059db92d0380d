"""The weights that come along; docs/models says how they were made and how well they see."""
