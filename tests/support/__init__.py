"""What the tests and the demo share: sandbox, lab, servers, clients."""
