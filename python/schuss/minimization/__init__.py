"""Minimisers in the form that `scipy.optimize.minimize` calls; `schuss.scipy` has them all."""
