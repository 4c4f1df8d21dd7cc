import gc

# torch, transformers, Prefect and MLflow make millions of objects that stay: to look for garbage
# among them at Python's own pace takes a quarter of their import.
gc.set_threshold(100_000, 20, 50)
