"""Running only the layers above the edited one, for the tokens behind the subject."""
