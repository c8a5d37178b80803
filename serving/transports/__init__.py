"""Ways to carry the RPCs over a network. They know no message."""
