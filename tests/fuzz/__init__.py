"""Coverage-guided fuzzing (atheris, libFuzzer) of everything that reads bytes somebody else may have written.

    make fuzz                                                   what the targets are
    make fuzz ARGS="--target pgoutput --runs 10000000"          its last line is the result as JSON

A target is a module here: ``seeds`` makes inputs from what real servers and our own writers wrote, ``run`` reads one input. The contract
is the same for all: an input is read, or refused by an ``IcelakeError``; any other exception, a crash of the process, a read or write
beyond an array, more than ``SLOWEST`` seconds or ``LARGEST`` MiB is a finding. Results that are read are looked at, too: Arrow's own
validation in full, and what each module promises of what it gave.

A compiled kernel gives no coverage and reads beyond an array in silence. So where there are kernels an input is read in one of two ways:
*interpreted* (NUMBA_DISABLE_JIT, each branch of the kernels guides the search; slow) or *compiled* with numba's bounds checks (fast;
guided by the Python around the kernels). A run does one execution in fifty interpreted, and the rest compiled, from what the first found.

``corpus/TARGET`` is committed: a sample of inputs that reached something new, and every input that was a finding
(``found-...``). They are read again by ``test_fuzz.py``, which then goes on from them for a while. What long runs find is kept in
``.fuzz/TARGET``; ``make fuzz ARGS="--target X --merge"`` writes the fewest of it that reach everything to ``corpus``.
"""

from typing import Final

TARGETS: Final = ("frames", "pgoutput", "values", "copy_text", "receive", "puffin", "manifests", "metadata", "key_index")
SLOWEST: Final = 20
LARGEST: Final = 2048
