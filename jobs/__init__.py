"""The operator's hands: the `htc` command. Imports neither torch nor ray until a command needs them."""
