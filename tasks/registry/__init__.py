"""MLflow versions."""
