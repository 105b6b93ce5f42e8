"""Model formats and architectures: from a file to a runner and a tokenizer."""
