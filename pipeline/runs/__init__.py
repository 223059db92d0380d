"""One run: begin, resume, lease, outcome, summary."""
