"""The command family: a module per command, with `arguments(parser)` and `run(chosen)`.

Modules are light: `run` imports what it needs, so that every `--help` is there at once.
"""

COMMANDS = {
    "fit": ("coop_jax.commands.fit", "Learn from labelled images"),
    "predict": ("coop_jax.commands.predict", "Class and probability of images"),
    "evaluate": ("coop_jax.commands.evaluate", "Accuracy of a saved method on labelled images"),
    "interpret": ("coop_jax.commands.interpret", "Words nearest to what was learned"),
    "export": ("coop_jax.commands.export", "Write a saved method for other software"),
    "import": ("coop_jax.commands.import_official", "Take over a prompt of the official code"),
    "push": ("coop_jax.commands.push", "Upload a saved method to the Hugging Face hub"),
    "pull": ("coop_jax.commands.pull", "Download a saved method from the Hugging Face hub"),
    "run": ("coop_jax.main", "Train and evaluate as a config says"),
    "sweep": ("coop_jax.sweep.__main__", "Run many configs, on this machine or with Ray"),
    "report": ("coop_jax.report.__main__", "Tables and pictures of results"),
    "check": ("coop_jax.data.check", "Find out what is missing or broken in datasets"),
    "prepare": ("coop_jax.data.prepare", "Make datasets quick to read"),
}
"""The commands in the order in which a user meets them: module and summary by name."""
