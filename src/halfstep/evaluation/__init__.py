"""What a model is worth: likelihood, sample quality, diversity, cloze accuracy, speed."""
