"""Sweeps: many configs, each a group of runs, on this machine or as tasks of a Ray cluster."""
