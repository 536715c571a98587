"""Which device works, in which type, and how a model is put on it."""
