"""What is computed: networks and loss heads as functions that return MXNet symbols."""
