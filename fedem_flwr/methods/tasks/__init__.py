"""Tasks of phases that more than one method could have."""
