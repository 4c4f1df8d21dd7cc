"""What a user runs: recipes, flows and the command line."""
