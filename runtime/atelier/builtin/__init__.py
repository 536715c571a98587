"""The built-in models: checkpoints, their generators and checkers, in one folder each."""
