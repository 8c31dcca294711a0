"""Exchange of weights and features: loading, export, round-trip check, model card, features of long videos."""
