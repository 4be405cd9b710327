"""The control API: HTTP and JSON on a unix socket, its server and its client."""
