"""What each round wrote, per layer and neuron, and what became of each request."""
