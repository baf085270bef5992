"""Making the bundled model that sees: pictures, what is asked about them, the model, training."""
