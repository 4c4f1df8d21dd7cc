"""The two small trained models that ship with the project, and the script that made them."""
