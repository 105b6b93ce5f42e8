"""The Servewright runtime: fetches, loads and serves models."""
