"""VQ-VAE2: images as two maps of codes, drawn one after the other by PixelSNAIL priors."""
