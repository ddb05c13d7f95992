"""The version of this package, and what else a bug report needs."""

import platform

from coop_jax.errors import InputError
from coop_jax.provenance import commit, hash_files, versions


def show(verbose: bool) -> int:
    """Print the version; with `verbose` those of other packages, the devices and the CLIP too."""
    found = versions()
    print("coop_jax", found.pop("coop_jax", "without an installation"))
    if verbose:
        for name, value in _details(found).items():
            print(f"{name:22} {value}")
    return 0


def _details(others: dict[str, str]) -> dict[str, str]:
    import jax.numpy as jnp

    from coop_jax import clip as clip_package
    from coop_jax.clip import source
    from coop_jax.clip.fingerprint import fingerprint

    found = {"commit": commit() or "none: not a clone"}
    found |= {"system": f"{platform.platform()}, {platform.python_implementation()}"} | others
    try:
        found["devices"] = _devices()
        clip, _ = clip_package.load(source.EMBEDDED, dtype=jnp.float32)
        found["embedded CLIP"] = fingerprint(clip)
    except InputError as error:
        found["devices"] = f"none: {error}"
    files = source.resolve(source.EMBEDDED, None).files()
    found["embedded CLIP's files"] = hash_files(files)
    return found


def _devices() -> str:
    from coop_jax import parallel

    devices = parallel.devices()
    return f"{len(devices)} of {devices[0].device_kind} ({devices[0].platform})"
