"""The real study, rehearsed: stand-in archives under real identifiers, and all stages from acquire to report.html.

    python -m rehearsal [--kill] [--folder FOLDER]        (make rehearse, make rehearse KILL=1)

The archives hold phantoms; every name, layout and number a download depends on is that of the real ones.
"""

import her2core  # noqa: F401 - first: it pins the instruction set before numpy is loaded
