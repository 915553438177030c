"""What an influence method has to beat: rankings that know nothing of the model's gradients."""
