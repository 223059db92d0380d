"""Training: targets, losses, the step and the loop. Imported by nothing that only runs the network."""
