"""Submit, status, logs, stop, list: jobs on a Ray cluster."""
