"""Work that outlives its HTTP request."""
