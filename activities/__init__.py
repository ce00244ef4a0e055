"""Everything that touches the world: one module per noun, dependencies passed in, every method safe to repeat."""
