"""What a person asks of halfstep: the command line, plans, exports."""
