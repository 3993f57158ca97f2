"""The shared Transformer: loading, adapters, and the frozen part computed once."""
