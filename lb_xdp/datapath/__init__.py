"""The adapter to BPF: compile, load, pin, attach, write maps, read counters.

It owns every bpf(2) call and the C sources' Python view. It decides nothing: ``lb_xdp.core.plan``
says what to do, ``lb_xdp.datapath.gateway`` does it.
"""
