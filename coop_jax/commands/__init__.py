"""The command family: a module per command, with `arguments(parser)` and `run(chosen)`.

Modules are light: `run` imports what it needs, so that every `--help` is there at once.
"""

MODULES = {
    "fit": "fit",
    "predict": "predict",
    "evaluate": "evaluate",
    "interpret": "interpret",
    "export": "export",
    "import": "import_official",
    "push": "push",
    "pull": "pull",
}
"""The commands in the order in which a user meets them, and their modules."""
