"""Losses shared by the families: functions of tensors, and modules where a loss holds weights."""
