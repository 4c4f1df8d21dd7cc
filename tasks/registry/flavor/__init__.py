"""An export as an MLflow logged model that readers open without our code."""
