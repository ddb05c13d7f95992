"""Many runs: python -m coop_jax.sweep CONFIG[:ARGUMENT] ... --workdir=DIR [--ray[=ADDRESS]].

A group is one config: its shots and seeds run in one process, on features that are encoded once, in
the workdir DIR/groups/NAME. DIR/results.jsonl has the results of all groups, each once, DIR/logs
what each said. The same command again goes on where it stopped, and more configs may be added.

Without Ray the groups run here, one after the other. With Ray each is a task on some node of the
cluster, which is tried again if it crashes or its node is lost. Then DIR, the datasets and the
files of the CLIP must lie on storage that all nodes see under the same paths, and all nodes need
the same installation.
"""
