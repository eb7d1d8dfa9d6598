"""Prediction on photographs and videos."""
