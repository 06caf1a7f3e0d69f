"""Steps on many processes: each has all parameters, and a share of the state.

    opt = schuss.mpi.Sharded(schuss.AdamW, params, lr=3e-4)

MPI comes with `pip install 'schuss[mpi]'`, and any object with the members of `Communicator` will
do. docs/machines.md tells more.
"""

from schuss.mpi.sharded import Sharded as Sharded
from schuss.mpi.wire import Communicator as Communicator

__all__ = ["Communicator", "Sharded"]
