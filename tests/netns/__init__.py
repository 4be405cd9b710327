"""Tests with real hosts in network namespaces."""
