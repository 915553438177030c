"""How well scores do what they claim: predictions held against models that were trained again."""
