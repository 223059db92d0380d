"""Text files that name images: plain, delimited, JSON."""
