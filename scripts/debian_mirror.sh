# shellcheck shell=bash
# For sourcing: where this host fetches Debian from, by its own apt configuration.

# Print "URI SUITE" for each repository that apt knows, without asking the network.
apt_repositories() {
  LC_ALL=C apt-get --print-uris update 2>/dev/null | sed -n "s,^'\([^']*\)/dists/\([^']*\)/InRelease'.*,\1 \2,p"
}

host_suite() { sed -n 's/^VERSION_CODENAME=//p' /etc/os-release; }

# Print lines of a sources.list for a suite of Debian, from the mirrors that have this host's own suite; prints nothing
# if there are none, for instance where the host is no Debian. A mirror carries all suites.
#
# usage: debian_sources SUITE
debian_sources() {
  local host uri suite signed='' keys=/usr/share/keyrings/debian-archive-keyring.gpg
  host=$(host_suite)
  [ -e "$keys" ] && signed="[signed-by=$keys] "
  apt_repositories | while read -r uri suite; do
    case $suite in
      "${host:-sid}" | stable | testing | unstable) printf 'deb %s%s %s main\n' "$signed" "$uri" "$1" ;;
      "$host"-updates | "$host"-security | stable-updates | stable-security)
        [ "$1" = sid ] || printf 'deb %s%s %s-%s main\n' "$signed" "$uri" "$1" "${suite##*-}"
        ;;
    esac
  done | sort -u
}

# Give this process an apt of its own, in a new directory: it knows one suite of Debian and no installed package, so that
# it fetches what it is asked for and everything that this needs. Fails where debian_sources finds nothing.
#
# usage: private_apt SUITE DIRECTORY
private_apt() {
  mkdir -p "$2/lists/partial" "$2/archives/partial"
  debian_sources "$1" >"$2/sources.list"
  cat >"$2/apt.conf" <<END
Dir::Etc::sourcelist "$2/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::State "$2";
Dir::State::status "/dev/null";
Dir::Cache "$2";
APT::Sandbox::User "root";
END
  export APT_CONFIG=$2/apt.conf
  [ -s "$2/sources.list" ]
}

# Unpack what such an apt has downloaded, without what people read, into the merged /usr of a Debian: newer packages have
# no /lib.
#
# usage: unpack_packages APT-DIRECTORY DIRECTORY
unpack_packages() {
  local package
  mkdir -p "$2"
  for package in "$1"/archives/*.deb; do
    dpkg-deb --fsys-tarfile "$package" | tar -x -C "$2" --exclude='./usr/share/doc' --exclude='./usr/share/man' \
      --exclude='./usr/share/locale' --transform='s,^\./lib,./usr/lib,' --no-same-owner
  done
}
