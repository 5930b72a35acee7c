"""`python -m coevolve`, which `accelerate launch -m coevolve` runs."""

import sys

from coevolve.cli import main

sys.exit(main())
