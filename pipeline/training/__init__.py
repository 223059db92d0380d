"""Training from files, by one process or by several under Ray Train."""
