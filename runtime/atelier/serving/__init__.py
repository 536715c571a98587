"""Assembling the server, and what stands before its routes."""
