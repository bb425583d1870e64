"""How well edits took: target scores, metrics, and who is evaluated when."""
