import sys

from sandhold.local_daytona.command import main

sys.exit(main())
