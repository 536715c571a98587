"""Training pipelines that end in a served model."""
