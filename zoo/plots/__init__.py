"""Pictures of zoos for papers: data in, a matplotlib Figure out, `save` writes it."""
