"""The engine: requests in, tokens out. Runs without Ray and without HTTP."""
