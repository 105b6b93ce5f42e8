"""The Kubernetes operator: watches ModelServices and keeps what they ask for so."""
