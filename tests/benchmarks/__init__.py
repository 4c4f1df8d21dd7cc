"""What we measure by hand; nothing here is a timed test."""
