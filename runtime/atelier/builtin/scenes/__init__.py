"""The built-in language model: its checkpoint files and the code that made them share this
folder."""
