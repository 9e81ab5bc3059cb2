"""What a run will take before it is run: parameters, arithmetic, memory, time and disk, from its parameters alone."""
