"""One file a technique: what it is called, what it does, and when it cannot be done."""
