"""The job spec: its model, and reading it from YAML and options."""
