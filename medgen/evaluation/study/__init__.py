"""Reader study: can people tell synthetic images from real ones? Drawn, served on this machine, and scored."""
