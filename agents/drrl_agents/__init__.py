"""Training, evaluation and comparison of rank-choosing agents, and the `drrl` command."""
