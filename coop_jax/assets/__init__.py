"""Files that come with the package: the tiny CLIP that the quickstart runs on."""
