"""How the models improve: one class per stage, each with `step(index)`, `state()` and `restore()`. No Ray in here."""
