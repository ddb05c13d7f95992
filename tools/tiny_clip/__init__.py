"""What `train_tiny_clip.py` is made of: fonts, pictures, captions, a vocabulary, the training."""
