"""What is learned: the backbone, neck and heads, as flax.nnx modules."""
