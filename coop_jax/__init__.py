"""coop_jax: prompt learning for CLIP-like models in JAX/Flax, for TPU and GPU."""
