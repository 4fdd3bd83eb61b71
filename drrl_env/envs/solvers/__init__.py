"""Solvers behind the oracles: pure functions on numpy arrays that know no environment, exact or with a stated bound."""
