"""The `htc` program: its commands and options; what a command does is imported when it runs."""
