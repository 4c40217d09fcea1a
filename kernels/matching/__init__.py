"""Weight matching in compiled code: a coordinate descent per model, with costs that are updated, not recomputed."""
