"""Atelier: serves diffusion pipelines and language models through KServe."""

__version__ = "0.1.0"
