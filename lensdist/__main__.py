"""`python -m lensdist` is `lensdist`."""

import sys

from lensdist.cli import main

sys.exit(main())
