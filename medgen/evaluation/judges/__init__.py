"""Networks that judge images: fixed feature networks, and small networks trained on real images."""
