"""The studio: a page in the browser where a person draws. A client of the public HTTP APIs alone;
it knows nothing of engines."""
