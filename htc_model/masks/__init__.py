"""Instance masks: from mask maps to COCO's run-length encoding, and reading it again."""
