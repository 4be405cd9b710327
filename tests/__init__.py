"""All tests of lb_xdp."""
