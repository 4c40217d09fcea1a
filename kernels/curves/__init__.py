"""Curves of low loss between pairs of networks: the middle control point of each, trained by SGD for many at once.

phi(t) = (1 - t)^2 start + 2 t (1 - t) middle + t^2 end: a quadratic Bezier curve through both networks, whose middle
point minimises the mean loss at t ~ U[0, 1]. All pairs see the same t and the same batches: what differs between two
pairs is then the pairs, and none depends on its companions. The reference is plain torch; compiled code takes one pair
after the other and a step of `kernels.mlp.training` or `kernels.lanes.training` at a time.

Source: Garipov et al. 2018, "Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs", arXiv 1802.10026, section
3, and for the schedule and weight decay their code. Differs: the learning rate changes step by step, not by epoch.
"""
