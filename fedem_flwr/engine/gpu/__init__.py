"""Local rounds as Triton kernels: one program a client."""
