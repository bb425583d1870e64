"""Facts to edit, prompts to score them on, and text for key statistics."""
