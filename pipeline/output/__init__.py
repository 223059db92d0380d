"""The output folder: tables, records, and reading them."""
