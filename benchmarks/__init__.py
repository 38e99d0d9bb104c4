"""Published sizes, what they cost, and how long they take."""
