"""Model sources and the content-addressed cache."""
