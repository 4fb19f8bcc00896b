"""SPADE: images of label maps."""
