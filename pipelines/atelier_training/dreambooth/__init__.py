"""Dreambooth: from a few pictures of a thing to an adapter that draws it, its evaluation,
publication and deployment."""
