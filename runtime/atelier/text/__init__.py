"""Language models: one TextRequest to tokens."""
