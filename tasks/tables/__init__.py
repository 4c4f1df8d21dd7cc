"""Tables with a schema."""
