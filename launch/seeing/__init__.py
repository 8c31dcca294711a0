"""Look at what a model predicts: pixels decoded from its predictions, and how far they are from what happens."""
