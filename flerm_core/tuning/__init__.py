"""Which learning rate is best, and how far an optimum moved."""
