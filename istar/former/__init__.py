"""What the models in folders that `m2ost export-istar` wrote earlier import, under the name that they know."""
