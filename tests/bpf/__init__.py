"""Tests of the XDP program through BPF_PROG_TEST_RUN."""
