#!/bin/sh
# Makes this machine a node of a waifud cluster. Created by `waifuctl node add`.
# The join token below admits one machine, so keep this file secret until the token is used or has expired.
set -eu

# The addresses of waifud, and the pin of its public key.
addresses=@ADDRESSES@
pin=@PIN@
# The join token, and its secret part.
token=@TOKEN@
secret=@SECRET@
# The name of the node; empty for the hostname of this machine.
name=@NAME@
# The package that waifud serves.
version=@VERSION@
architecture=@ARCHITECTURE@

units='waifud-metadatad.service waifud-agentd.service waifud-guests.service'

say() {
    printf '%s\n' "$*"
}

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# Downloads a package of this kind into a file.
download() {
    for address in $addresses; do
        if curl -fsS --insecure --pinnedpubkey "$pin" --connect-timeout 10 --max-time 1800 --header "@$dir/header" \
            --output "$2" "$address@PACKAGES_PATH@/$1"; then
            return
        fi
    done
    fail "cannot download waifud's package from $addresses"
}

check() {
    [ "$(id -u)" -eq 0 ] || fail 'this script must run as root; end the command with: | sudo sh'
    [ "$(uname -s)" = Linux ] || fail "a node needs Linux, but this machine runs $(uname -s)"
    case "$(uname -m)" in
        x86_64) here=amd64 ;;
        aarch64) here=arm64 ;;
        *) here=$(uname -m) ;;
    esac
    [ "$here" = "$architecture" ] || fail "waifud's package is for $architecture, but this machine is $here"
    [ -d /run/systemd/system ] ||
        fail 'systemd does not run on this machine; install waifud by hand, then run: waifud-agentd join --token-file -'
    command -v curl >/dev/null || fail 'curl is not installed'
    kind=tarball
    if command -v apt-get >/dev/null && command -v dpkg-query >/dev/null; then
        kind=deb
        return
    fi
    missing=
    for program in libvirtd qemu-system-x86_64 qemu-img dnsmasq nft systemd-sysusers tar gzip; do
        command -v "$program" >/dev/null || missing="$missing $program"
    done
    [ -z "$missing" ] || fail "these programs are missing; install them with the package manager first:$missing"
}

explain() {
    as=
    [ -z "$name" ] || as=" as $name"
    say "This machine joins the waifud at $addresses$as:"
    if [ "$kind" = deb ]; then
        say "  1. apt-get installs waifud $version from there, with libvirt, QEMU, dnsmasq and nftables"
    else
        say "  1. waifud $version from there is unpacked into /usr"
    fi
    say "  2. waifud-agentd join$as"
    say "  3. systemctl enable --now $units"
}

# The version of the installed Debian package, if any.
installed_version() {
    case "$(dpkg-query --show --showformat='${db:Status-Status}' waifud 2>/dev/null || true)" in
        installed) dpkg-query --show --showformat='${Version}' waifud ;;
    esac
}

install_deb() {
    installed=$(installed_version)
    if [ "$installed" = "$version" ]; then
        say "waifud $version is already installed"
        return
    fi
    if [ -n "$installed" ] && dpkg --compare-versions "$installed" gt "$version"; then
        say "waifud $installed is already installed; it is newer and is kept"
        return
    fi
    package="$dir/waifud.deb"
    say "downloading waifud $version"
    download deb "$package"
    # apt's own user reads it.
    chmod 0755 "$dir"
    chmod 0644 "$package"
    # The message about `waifud init` is for the machine of waifud.
    export DEBIAN_FRONTEND=noninteractive WAIFUD_JOINING=yes
    if ! apt-get install --simulate --quiet --yes "$package" >/dev/null 2>&1; then
        apt-get update --quiet
    fi
    apt-get install --quiet --yes "$package"
}

install_tarball() {
    say "downloading waifud $version"
    download tarball "$dir/waifud.tar.gz"
    tar --extract --gzip --file "$dir/waifud.tar.gz" --directory / --no-same-owner --no-overwrite-dir --strip-components 1
    systemd-sysusers waifud.conf
    mkdir -p /etc/waifud
    systemctl daemon-reload
    # After an upgrade. Not waifud-guests, because stopping it would stop guests.
    systemctl try-restart waifud-metadatad.service waifud-agentd.service
}

main() {
    check
    explain
    dir=$(mktemp -d)
    trap 'rm -rf "$dir"' EXIT
    trap 'exit 1' HUP INT TERM
    (umask 077 && printf '@HEADER@: %s\n' "$secret" >"$dir/header")
    "install_$kind"
    if [ -n "$name" ]; then
        printf '%s\n' "$token" | waifud-agentd join --token-file - --name "$name"
    else
        printf '%s\n' "$token" | waifud-agentd join --token-file -
    fi
    # One word per unit.
    # shellcheck disable=SC2086
    systemctl enable --now --quiet $units
    say 'This machine is a node now. Where waifuctl is set up, `waifuctl node list` shows it.'
}

# The last line, so that nothing runs if the download was cut off. Standard input is this script.
main </dev/null
