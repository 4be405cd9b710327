"""What the gateway tells monitoring: Prometheus samples, and health over HTTP."""
