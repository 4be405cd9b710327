"""Tests with a virtual machine: a stock kernel, virtio and other real drivers."""
