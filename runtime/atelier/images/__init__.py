"""Everything that turns an ImageRequest into pictures: request, loader, step-batching engine,
model."""
