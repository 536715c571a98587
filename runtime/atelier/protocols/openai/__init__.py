"""OpenAI's images and text APIs."""
