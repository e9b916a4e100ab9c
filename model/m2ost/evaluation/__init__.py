"""Judging predictions on real sections: a checkpoint, an exported network, or a file that `m2ost predict` wrote."""
