"""The built-in model: a small text-to-image pipeline, and everything it was made with.

The folder is a diffusers checkpoint and a Python package at once. `scene` says what can be shown,
`prompts` puts it into words and reads words back, `draw` paints it, `train` learns it, `checker`
judges a picture by its pixels alone.
"""
