"""What the registry says of a version."""
