#!/bin/sh
# Builds token-broker_VERSION_ARCH.deb from this checkout, for the Debian or Ubuntu it is run on. As root, like the installer.
# Removing the package leaves configuration, secrets and the store; purging it removes them.
set -eu

usage() {
    cat <<'USAGE'
usage: build-deb.sh [options]

  --output DIR      where the package goes (default .)
  --python PROGRAM  the Python that it will need, 3.11 or newer (default python3)
  --revision N      the Debian revision (default 1)
USAGE
}

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
output=. python=${PYTHON:-python3} revision=1
while [ $# -gt 0 ]; do
    case $1 in
        --output | --python | --revision)
            [ $# -ge 2 ] || { echo "build-deb.sh: $1 needs a value" >&2; exit 2; }
            case $1 in
                --output) output=$2 ;;
                --python) python=$2 ;;
                --revision) revision=$2 ;;
            esac
            shift ;;
        -h | --help) usage; exit 0 ;;
        *) echo "build-deb.sh: unknown option $1" >&2; usage >&2; exit 2 ;;
    esac
    shift
done
[ "$(id -u)" = 0 ] || { echo "build-deb.sh: must run as root: the files in the package are root's" >&2; exit 1; }

umask 022
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
chmod 755 "$stage"
sh "$here/install.sh" --root "$stage" --python "$python" > /dev/null

home=/opt/token-broker
version=$("$stage$home/a/bin/python" -c 'import broker; print(broker.__version__)')
minor=$("$python" -c 'import sys; print(sys.version_info.minor)')

# Each version has a directory of its own: the one in use stays whole until the link is changed.
slot=$home/$version-$revision
mv "$stage$home/a" "$stage$slot"
grep -lIr "^#!$home/a/" "$stage$slot/bin" | xargs -r sed -i "1s|^#!$home/a/|#!$slot/|"
sed -i "s|$stage$home/a|$slot|g" "$stage$slot/pyvenv.cfg"
rm "$stage$slot/bin/"[Aa]ctivate* # nobody works in there
# What is compiled names its source for tracebacks: where that will be, not where it is now.
"$python" -m compileall -q -f -s "$stage" -p / "$stage$slot/lib" || :
ln -sfn "$version-$revision" "$stage$home/current"
rm "$stage$home/installed.sha256"

# A package's own units lie in /usr/lib, so that what an operator puts into /etc wins.
mkdir -p "$stage/usr/bin" "$stage/usr/lib/systemd" "$stage/usr/share/doc/token-broker" "$stage/DEBIAN"
mv "$stage/etc/systemd/system" "$stage/usr/lib/systemd/system"
mv "$stage/etc/sysusers.d" "$stage/usr/lib/sysusers.d"
rmdir "$stage/etc/systemd"
ln -s "$home/current/bin/token-broker" "$stage/usr/bin/token-broker"
install -m 644 "$here/../LICENSE" "$stage/usr/share/doc/token-broker/copyright"
install -m 644 "$here/../CHANGELOG.md" "$stage/usr/share/doc/token-broker/changelog.md"

cat > "$stage/DEBIAN/control" <<CONTROL
Package: token-broker
Version: $version-$revision
Architecture: $(dpkg --print-architecture)
Maintainer: The token-broker authors <token-broker@localhost>
Section: net
Priority: optional
Installed-Size: $(du -sk "$stage" | cut -f1)
Depends: python3 (>= 3.$minor~), python3 (<< 3.$((minor + 1))~), ca-certificates, passwd
Recommends: systemd
Description: WeChat access token broker
 The one process that fetches WeChat access tokens, so that services never
 fight over them.
CONTROL
echo /etc/token-broker/config.toml > "$stage/DEBIAN/conffiles"

cat > "$stage/DEBIAN/preinst" <<'SCRIPT'
#!/bin/sh
set -e
if [ -e /opt/token-broker/installed.sha256 ]; then
    echo "token-broker: deploy/install.sh has installed it here; first run: install.sh --uninstall (configuration and store stay)" >&2
    exit 1
fi
SCRIPT

cat > "$stage/DEBIAN/postinst" <<'SCRIPT'
#!/bin/sh
set -e
[ "$1" = configure ] || exit 0
getent group token-broker > /dev/null || groupadd --system token-broker
chown root:token-broker /etc/token-broker /etc/token-broker/config.toml
chmod 750 /etc/token-broker
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
    # After an upgrade: systemd holds the sockets, so nobody notices.
    [ -z "$2" ] || systemctl try-restart token-broker.service token-broker-avatars.service
fi
if [ -z "$2" ]; then
    cat <<'DONE'
token-broker: next
  1. /etc/token-broker/config.toml: the AppID
  2. the AppSecret: (umask 077; cat > /etc/token-broker/main.secret), then paste it, Enter, Ctrl-D
  3. systemctl enable --now token-broker.socket token-broker.service
DONE
fi
SCRIPT

cat > "$stage/DEBIAN/prerm" <<'SCRIPT'
#!/bin/sh
set -e
if [ "$1" = remove ] && [ -d /run/systemd/system ]; then
    systemctl disable --now token-broker-avatars.service token-broker.service token-broker.socket
fi
SCRIPT

cat > "$stage/DEBIAN/postrm" <<'SCRIPT'
#!/bin/sh
set -e
case $1 in
    remove | purge)
        rm -rf /opt/token-broker
        [ ! -d /run/systemd/system ] || systemctl daemon-reload
        ;;
esac
if [ "$1" = purge ]; then
    rm -rf /etc/token-broker /var/lib/private/token-broker /var/lib/token-broker \
        /run/private/token-brokerd /run/token-brokerd
    ! getent group token-broker > /dev/null || groupdel token-broker
fi
SCRIPT
chmod 755 "$stage/DEBIAN/preinst" "$stage/DEBIAN/postinst" "$stage/DEBIAN/prerm" "$stage/DEBIAN/postrm"

mkdir -p "$output"
dpkg-deb --root-owner-group --build "$stage" "$output"
