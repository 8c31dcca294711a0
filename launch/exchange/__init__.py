"""Weights in and out: origins, export, round trip, model card, features of long videos."""
