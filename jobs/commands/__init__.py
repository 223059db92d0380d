"""The commands of `htc`, one thin function each; what they need is imported when they run."""
