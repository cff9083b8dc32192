"""Where rows are: a source says what they are, and starts runs over them. `anykmeans._lloyd` has the protocol."""
