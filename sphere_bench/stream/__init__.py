"""The stream of edits: edit a batch, measure, record, go on."""
