"""Runs cloud-init's own client code and prints the values that it read from the documents, as JSON.

Called with cloud-init's modules on PYTHONPATH, in a network namespace in which 169.254.169.254 is the service. Only values
of the guest's machine are replaced: its network interface, its DMI data, and the directories for files.
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


class Warnings(logging.Handler):
    """The warnings of cloud-init, which would make its status degraded."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


warnings = Warnings()
logging.getLogger().addHandler(warnings)

# libvirt sets it in the guest's SMBIOS.
dmi.read_dmi_data = {"system-product-name": "OpenStack Nova"}.get

home = tempfile.mkdtemp()
paths = helpers.Paths({"cloud_dir": home + "/cloud", "run_dir": home + "/run"})
distro = SimpleNamespace(fallback_interface="eth0")
source = DataSourceOpenStack.DataSourceOpenStack({"datasource_list": ["OpenStack"]}, distro, paths)
found = getattr(source, "ds_detect", lambda: True)() and source._get_data()
if not found:
    sys.exit("the source was not found: %s" % warnings.lines)

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
    "warnings": list(warnings.lines),
}

# The end of the boot: cloud-init's own module phones home as vendor-data configures it.
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
seen["phone_home_failed"] = [line for line in warnings.lines if "Failed to post" in line]

# A stage with a failing module, reported by cloud-init's own reporter as vendor-data configures it.
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
seen["reports_failed"] = [line for line in warnings.lines if "posting event" in line]
util.del_dir(home)

json.dump(seen, sys.stdout)
sys.stdout.flush()
# 25.1 also requests fe80::a9fe:a9fe, in a thread that only the interpreter's exit waits for, up to 10 s. In a guest, the
# process continues with its other stages.
os._exit(0)
