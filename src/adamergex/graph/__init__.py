"""Steps, their store, and the engines that run them."""
