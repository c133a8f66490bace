#!/bin/sh
# mmdebstrap's customize hook: what has to be asked of the guest's own systemctl.
set -eu
root=$1
chroot "$root" systemctl --quiet enable systemd-networkd.service systemd-resolved.service ssh.service
# Looks for LVM snapshots to check at every boot; there is no LVM here.
chroot "$root" systemctl --quiet disable e2scrub_reap.service e2scrub_all.timer
