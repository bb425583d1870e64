"""Pretrained causal decoders: loading, layout, hooks, tokens and batches."""
