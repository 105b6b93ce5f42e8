"""Wire formats over one engine."""
