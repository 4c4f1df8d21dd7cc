"""Programs that tests run in a process of their own by `python -c`."""

# Before what imports torch or MLflow: to look for garbage meanwhile takes a quarter of that.
QUICK = "import gc; gc.set_threshold(100_000, 20, 50)\n"
