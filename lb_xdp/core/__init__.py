"""The part that decides: pure functions over plain values. No I/O, no clock, no bcc."""
