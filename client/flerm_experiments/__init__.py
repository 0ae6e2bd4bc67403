"""Research apparatus that stands on the client: workloads, sweeps, the paper's own files."""
