"""Several processes that compute one result, the same bytes whatever their number."""
