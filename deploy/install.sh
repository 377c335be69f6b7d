#!/bin/sh
# Installs token-broker for systemd, from this checkout or from PyPI; upgrades; uninstalls. Run it again as often as you like.
set -eu

usage() {
    cat <<'USAGE'
usage: install.sh [options]

  --prefix DIR      where the program goes (default /opt/token-broker)
  --root DIR        put everything below DIR, as if DIR were / (nothing is started, no user or group is made)
  --package SPEC    what pip installs (default: this checkout; e.g. wechat-token-broker==0.2.0 for PyPI)
  --python PROGRAM  the Python to use, 3.11 or newer (default python3)
  --no-package      leave the program as it is: units and configuration only
  --uninstall       remove the program and the units; configuration, secrets and state stay
  --purge           with --uninstall: remove those too
USAGE
}

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
prefix=/opt/token-broker root='' package=$(dirname -- "$here") python=${PYTHON:-python3}
with_package=yes uninstall=no purge=no

while [ $# -gt 0 ]; do
    case $1 in
        --prefix | --root | --package | --python)
            [ $# -ge 2 ] || { echo "install.sh: $1 needs a value" >&2; exit 2; }
            case $1 in
                --prefix) prefix=$2 ;;
                --root) root=$2 ;;
                --package) package=$2 ;;
                --python) python=$2 ;;
            esac
            shift ;;
        --no-package) with_package=no ;;
        --uninstall) uninstall=yes ;;
        --purge) purge=yes ;;
        -h | --help) usage; exit 0 ;;
        *) echo "install.sh: unknown option $1" >&2; usage >&2; exit 2 ;;
    esac
    shift
done

say() { printf '%s\n' "install.sh: $*"; }
stop() { say "$*" >&2; exit 1; }

root=${root%/}
# A path goes into units and is removed at the end: no surprises in it, and not a directory that others use.
case $prefix in
    *[!A-Za-z0-9/._-]* | */../* | */.. | */ | [!/]*) stop "--prefix must be a plain absolute path without a slash at its end" ;;
    /*/*) ;;
    *) stop "--prefix must be a directory of its own, such as /opt/token-broker" ;;
esac
[ -n "$root" ] || [ "$(id -u)" = 0 ] || stop "must run as root (or with --root DIR)"
[ "$purge" = no ] || [ "$uninstall" = yes ] || stop "--purge goes with --uninstall"

group=token-broker
home=$root$prefix
etc=$root/etc/token-broker
units=$root/etc/systemd/system
sysusers=$root/etc/sysusers.d
# The checksums of what we have brought: a file that still has its own was not edited, and may be replaced.
manifest=$home/installed.sha256
here_and_now=no
if [ -z "$root" ] && [ -d /run/systemd/system ]; then here_and_now=yes; fi

checksum() { sha256sum < "$1" | cut -d' ' -f1; }
# What we have brought last for the file $1; nothing where we never did.
brought() { [ ! -f "$manifest" ] || awk -v path="$1" 'substr($0, 66) == path { print $1 }' "$manifest"; }

# note DESTINATION SOURCE
note() {
    touch "$manifest"
    awk -v path="$1" 'substr($0, 66) != path' "$manifest" > "$manifest.tmp"
    printf '%s %s\n' "$(checksum "$2")" "$1" >> "$manifest.tmp"
    mv "$manifest.tmp" "$manifest"
}

# put MODE SOURCE DESTINATION: never over what somebody edited; for that, what is new lies beside it, once.
put() {
    if [ ! -e "$3" ]; then
        install -m "$1" "$2" "$3"
        say "installed $3"
    elif cmp -s "$2" "$3"; then
        :
    elif [ "$(brought "$3")" = "$(checksum "$3")" ]; then
        install -m "$1" "$2" "$3"
        say "updated $3"
    elif [ "$(brought "$3")" != "$(checksum "$2")" ]; then
        install -m "$1" "$2" "$3.new"
        say "$3 was edited and stays; the new one is $3.new"
    fi
    note "$3" "$2"
}

# Two places in turn: the one in use stays whole until the other is ready, and the way back is one link.
install_package() {
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || stop "$python is missing or older than Python 3.11"
    real=$("$python" -c 'import os, sys; print(os.path.realpath(sys.executable))')
    case $real in
        /home/* | /root/* | /run/user/* | /tmp/* | /var/tmp/*)
            [ -n "$root" ] || stop "$real is where the unit cannot see it (ProtectHome, PrivateTmp): name another with --python" ;;
    esac
    slot=a
    [ "$(readlink "$home/current" 2> /dev/null)" != a ] || slot=b
    rm -rf "${home:?}/$slot"
    "$python" -m venv "$home/$slot" || stop "no virtual environment: on Debian and Ubuntu, apt install python3-venv"
    [ ! -d "$package" ] || package=$(CDPATH='' cd -- "$package" && pwd)
    "$home/$slot/bin/python" -m pip install --quiet --disable-pip-version-check "${package}[speed,encryption,postgres,redis,notify]"
    "$home/$slot/bin/token-broker" --version
    [ -z "$root" ] || grep -lIr "^#!$root$prefix/" "$home/$slot/bin" | xargs -r sed -i "1s|^#!$root|#!|"
    chmod -R a+rX "$home/$slot"
    ln -sfn "$slot" "$home/current.tmp" && mv -T "$home/current.tmp" "$home/current"
}

# put_changed MODE SOURCE DESTINATION SCRIPT: what sed makes of it.
put_changed() {
    sed "$4" "$2" > "$home/changed.tmp"
    put "$1" "$home/changed.tmp" "$3"
    rm "$home/changed.tmp"
}

install_all() {
    umask 022
    mkdir -p "$home" "$units" "$sysusers"
    [ "$with_package" = no ] || install_package
    put 644 "$here/token-broker.sysusers.conf" "$sysusers/token-broker.conf"
    [ "$here_and_now" = no ] || systemd-sysusers "$sysusers/token-broker.conf"
    [ -d "$etc" ] || install -d -m 750 "$etc"
    # The unit hands the secret over as a credential: root's file is not the daemon's to read.
    put_changed 640 "$here/config.example.toml" "$etc/config.toml" 's|^secret_file|#&|'
    if [ -z "$root" ] && getent group "$group" > /dev/null; then
        # The daemon reads its configuration by this group, and so does `token-broker get` of whoever may ask.
        chgrp "$group" "$etc" "$etc/config.toml"
        [ ! -e "$etc/config.toml.new" ] || chgrp "$group" "$etc/config.toml.new"
    fi
    for unit in token-broker.socket token-broker.service token-broker-avatars.service; do
        put_changed 644 "$here/$unit" "$units/$unit" "s|/opt/token-broker/|$prefix/|g"
    done
    [ "$here_and_now" = no ] || systemctl daemon-reload
    cat <<DONE

Next:
  1. $etc/config.toml: the AppID
  2. the AppSecret, not on a command line: (umask 077; cat > $etc/main.secret), then paste it, Enter, Ctrl-D
  3. systemctl enable --now token-broker.socket token-broker.service
     (after an upgrade: systemctl daemon-reload; systemctl restart token-broker.service; nobody notices)
  4. who may ask over $root/run/token-broker/broker.sock: usermod -aG $group USER
DONE
}

uninstall_all() {
    if [ "$here_and_now" = yes ]; then
        systemctl disable --now token-broker-avatars.service token-broker.service token-broker.socket 2> /dev/null || :
    fi
    for file in "$units/token-broker.socket" "$units/token-broker.service" "$units/token-broker-avatars.service" \
        "$sysusers/token-broker.conf"; do
        rm -f "$file.new"
        if [ -e "$file" ] && [ "$purge" = no ] && [ "$(brought "$file")" != "$(checksum "$file")" ]; then
            mv "$file" "$file.edited"
            say "$file was edited: kept as $file.edited"
        else
            rm -f "$file"
        fi
    done
    [ "$here_and_now" = no ] || systemctl daemon-reload
    rm -rf "${home:?}/a" "$home/b"
    rm -f "$home/current" "$manifest"
    rmdir "$home" 2> /dev/null || :
    if [ "$purge" = yes ]; then
        rm -rf "$etc" "$root/var/lib/private/token-broker" "$root/var/lib/token-broker" \
            "$root/run/private/token-brokerd" "$root/run/token-brokerd"
        [ -n "$root" ] || ! getent group "$group" > /dev/null || groupdel "$group"
        say "removed, with configuration, secrets and state"
    else
        say "removed; $etc and $root/var/lib/token-broker stay (--uninstall --purge removes them)"
    fi
}

if [ "$uninstall" = yes ]; then uninstall_all; else install_all; fi
