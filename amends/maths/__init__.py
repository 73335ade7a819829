"""Shared mathematics: functions of tensors and arrays that know nothing of models, files or devices."""
