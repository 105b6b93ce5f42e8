"""Paged KV cache bookkeeping: plain data, no tensors."""
