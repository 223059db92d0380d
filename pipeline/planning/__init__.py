"""Which images a run does: manifest, shards, and the history of earlier runs."""
