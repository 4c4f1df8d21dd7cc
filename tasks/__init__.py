"""One thin task per step: load references, call the core, publish the result."""
