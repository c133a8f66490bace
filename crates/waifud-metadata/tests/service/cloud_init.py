"""Runs cloud-init's own client code and prints, as JSON, what it made of the documents.

Called with cloud-init's modules on PYTHONPATH, in a network namespace in which 169.254.169.254 is the service. Nothing of
the client is replaced but what a guest's machine would tell it: which interface it has, and where it keeps its files.
"""

import json
import logging
import os
import sys
import tempfile
from types import SimpleNamespace

from cloudinit import dmi, helpers, reporting, util
from cloudinit.config import cc_phone_home
from cloudinit.reporting.events import ReportEventStack
from cloudinit.sources import DataSourceOpenStack
from cloudinit.sources.helpers import ec2, openstack

mac = sys.argv[1]


class Complaints(logging.Handler):
    """What cloud-init warns of; a guest would be shown as degraded for it."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


complaints = Complaints()
logging.getLogger().addHandler(complaints)

# libvirt writes it into the guest's SMBIOS.
dmi.read_dmi_data = {"system-product-name": "OpenStack Nova"}.get

home = tempfile.mkdtemp()
paths = helpers.Paths({"cloud_dir": home + "/cloud", "run_dir": home + "/run"})
distro = SimpleNamespace(fallback_interface="eth0")
source = DataSourceOpenStack.DataSourceOpenStack({"datasource_list": ["OpenStack"]}, distro, paths)
found = getattr(source, "ds_detect", lambda: True)() and source._get_data()
if not found:
    sys.exit("the source was not found: %s" % complaints.lines)

hostname = source.get_hostname()
vendor = util.load_yaml(source.vendordata_raw)
seen = {
    "metadata_address": source.metadata_address,
    "version": source.version,
    "instance_id": source.get_instance_id(),
    "hostname": getattr(hostname, "hostname", hostname),
    "fqdn": getattr(source.get_hostname(fqdn=True), "hostname", None),
    "availability_zone": source.availability_zone,
    "keys": source.get_public_ssh_keys(),
    "user_data": util.decode_binary(source.get_userdata_raw() or b""),
    "vendor_data": vendor,
    "network": openstack.convert_net_json(source.network_json, known_macs={mac: "eth0"}),
    "ec2": source.ec2_metadata,
    "ec2_identity": ec2.get_instance_identity(),
    "ec2_user_data": util.decode_binary(ec2.get_instance_userdata()),
    "complaints": list(complaints.lines),
}

# The end of the boot: what vendor-data asked for, done by cloud-init's own module.
cloud = SimpleNamespace(
    get_instance_id=source.get_instance_id,
    get_hostname=lambda fqdn=False: source.get_hostname(fqdn=fqdn),
    paths=paths,
)
log = logging.getLogger("phone_home")
arguments = ["phone_home", vendor, cloud, []]
if "log" in cc_phone_home.handle.__code__.co_varnames[:5]:
    arguments.insert(3, log)
cc_phone_home.handle(*arguments)
seen["phone_home_failed"] = [line for line in complaints.lines if "Failed to post" in line]

# A stage with a module that fails, told by cloud-init's own reporter as vendor-data configures it.
reporting.update_configuration(vendor["reporting"])
with ReportEventStack("modules-final", "running modules for final") as stage:
    with ReportEventStack("config-runcmd", "running config-runcmd", parent=stage):
        pass
    try:
        with ReportEventStack("config-scripts-user", "running config-scripts-user", parent=stage):
            raise RuntimeError("Runparts: 1 failures")
    except RuntimeError:
        pass
reporting.flush_events()
seen["reports_failed"] = [line for line in complaints.lines if "posting event" in line]
util.del_dir(home)

json.dump(seen, sys.stdout)
sys.stdout.flush()
# 25.1 asks fe80::a9fe:a9fe as well, in a thread that nobody waits for but the interpreter's end: up to 10 s. In a guest the
# process goes on with its other stages.
os._exit(0)
