"""The specification of all that is compiled, in NumPy: the same order of operations, the same bits.

rules      what happens to one element, a few lines a rule
stages     the order of a step: what stands around the rule
sums       the first sweep over the arrays, which writes nothing
pieces     gradients that come in several arrays, or as rows of one
rows       some rows of an array, of which alone a step is
factored   second moments of matrices as two factors
elements   selections that rules and stages share
storage    rounding to 16 bits
"""

from schuss.reference.elements import clamp as clamp
from schuss.reference.elements import maximum as maximum
from schuss.reference.elements import sign as sign
from schuss.reference.factored import estimate as estimate
from schuss.reference.factored import factors as factors
from schuss.reference.pieces import average as average
from schuss.reference.pieces import coalesce as coalesce
from schuss.reference.pieces import product as product
from schuss.reference.rules import *  # noqa: F403
from schuss.reference.stages import Stages as Stages
from schuss.reference.stages import scales_finite as scales_finite
from schuss.reference.stages import step as step
from schuss.reference.sums import measure as measure
from schuss.reference.sums import norm as norm
from schuss.reference.sums import norm_squared as norm_squared
from schuss.reference.sums import pairwise as pairwise
from schuss.reference.sums import report as report
