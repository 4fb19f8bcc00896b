"""Losses shared by the families: pure functions of tensors, and small modules where a loss holds weights."""
