"""The HTTP server of one environment: verified versions, routed requests, every prediction logged."""
