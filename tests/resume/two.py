"""One run over several gloo processes, from a specification as ``runs.py`` takes it.

Run as a script: ``two.py SPECIFICATION``; ``kill_at`` kills process zero, the launcher's others follow.
"""

import json
import sys

from runs import run

if __name__ == "__main__":
    run(json.loads(sys.argv[1]))
