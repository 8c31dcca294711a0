"""File formats of encoders and predictors: one module per format."""
