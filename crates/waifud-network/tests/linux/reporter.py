"""Runs cloud-init's own reporter through the stages of a boot and prints, as JSON, what each end of a stage cost.

Called with cloud-init's modules on PYTHONPATH, in a guest's namespace. The argument is the reporter's configuration and the
numbers of modules in the stages.
"""

import json
import logging
import sys
import time

from cloudinit import reporting
from cloudinit.reporting.events import ReportEventStack

config, stages = json.loads(sys.argv[1])


class Failures(logging.Handler):
    def __init__(self):
        super().__init__(logging.WARNING)
        self.count = 0

    def emit(self, record):
        self.count += "posting event" in record.getMessage()


failures = Failures()
logging.getLogger().addHandler(failures)
reporting.update_configuration({"waifud": config})

seconds = []
for number, modules in enumerate(stages):
    started = time.monotonic()
    with ReportEventStack("stage-%d" % number, "a stage") as stage:
        for module in range(modules):
            with ReportEventStack("config-%d" % module, "a module", parent=stage):
                pass
    # What cloud-init does before the process of a stage ends.
    reporting.flush_events()
    seconds.append(time.monotonic() - started)
json.dump({"seconds": seconds, "failed": failures.count}, sys.stdout)
