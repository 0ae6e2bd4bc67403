"""From a base recording to the targets of another model, and from targets to multipliers."""
