"""The only place that knows Ray Serve."""
