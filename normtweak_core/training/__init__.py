"""Training loops that can be stopped anywhere: objectives, rates, checkpoints, the loop itself."""
