"""Trials of what a run promises: it is disturbed, and must end as an undisturbed one."""
