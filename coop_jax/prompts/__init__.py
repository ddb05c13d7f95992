"""Learned prompts, without the CLIP: as files, on the hub, for the official code and others."""

from coop_jax.prompts.prompt import Prompt, load, of, of_run, save, training_record

__all__ = ["Prompt", "load", "of", "of_run", "save", "training_record"]
