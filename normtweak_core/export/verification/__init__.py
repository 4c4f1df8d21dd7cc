"""What a faithful reader must reproduce, and the proof that it does."""
