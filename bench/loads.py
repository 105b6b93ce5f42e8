"""The loads that every engine gets, in tokens."""

# Of a request through HTTP.
TOKENS_IN = 64
TOKENS_OUT = 64
# What llama-bench calls pp512 and tg128.
PREFILL_TOKENS = 512
DECODE_TOKENS = 128
# Tensor types that decode is measured with, besides Q4_0.
OTHER_TYPES = ("Q8_0", "Q4_1")
