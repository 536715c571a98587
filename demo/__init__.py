"""The built-in models: generators, checkers, training scripts, cards and weights."""
