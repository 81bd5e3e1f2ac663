"""What the results say, from what is on disk."""
