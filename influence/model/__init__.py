"""A trained model from its folder, frozen and checked, and the layers of it whose gradients are rows."""
