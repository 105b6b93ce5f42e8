"""The ModelService API: types, validation, version. Knows no client and no runtime."""
