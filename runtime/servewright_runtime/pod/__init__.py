"""What runs in a pod's containers: the fetcher of its model, and the supervisor as PID 1.

Only what differs from a laptop is here: where the manifest comes from and where files lie.
"""
