"""The `htc` command. Imports neither torch nor ray until a command needs them."""
