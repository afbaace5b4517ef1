"""What changed from one run to another, and whether anything is worse."""
