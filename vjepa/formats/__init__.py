"""One file a format: each reads or writes encoders and predictors in it."""
