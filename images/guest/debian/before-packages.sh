#!/bin/sh
# mmdebstrap's essential hook: the initramfs is then generated once, and already small.
set -eu
root=$1
here=$(dirname "$0")
mkdir -p "$root/etc/initramfs-tools/conf.d" "$root/usr/share/initramfs-tools/modules.d"
cp "$here/initramfs.conf" "$root/etc/initramfs-tools/conf.d/cloud.conf"
cp "$here/initramfs-modules" "$root/usr/share/initramfs-tools/modules.d/cloud"
