"""A thing that the built-in model has never seen: a striped ring, to try fine-tuning on."""
