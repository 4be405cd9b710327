# shellcheck shell=bash
# The distribution's packages for scripts/setup, which defines say, die and quietly.

runtime_packages=(python3-bpfcc python3-venv iproute2 ethtool util-linux)
test_packages=(curl wrk iperf3 nginx nftables procps shellcheck iputils-ping iputils-tracepath traceroute
	dnsmasq-base openssl socat # servers to probe, and their certificates
	python3-dpkt) # the last one for the captures among its examples
dpkt_documents=/usr/share/doc/python3-dpkt

ensure_packages() { # runtime|dev
	local wanted=("${runtime_packages[@]}") missing=()
	[ "$1" = runtime ] || wanted+=("${test_packages[@]}")
	for package in "${wanted[@]}"; do
		is_complete "$package" || missing+=("$package")
	done
	if [ "${#missing[@]}" -eq 0 ] && have_headers; then
		return
	fi
	check_distribution "${missing[@]}"
	[ "$(id -u)" -eq 0 ] || die "packages are missing (${missing[*]:-kernel headers}):" \
		"run it as root: sudo scripts/setup"
	say "reading the package lists"
	quietly apt-get update -q
	have_headers || missing+=("$(headers_package)")
	say "installing ${missing[*]}"
	install_packages "${missing[@]}"
}

# Installed, and not without what we need of its documentation, as containers and our machines do.
is_complete() {
	is_installed "$1" && { [ "$1" != python3-dpkt ] || [ -d "$dpkt_documents/examples" ]; }
}

is_installed() {
	[ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

check_distribution() {
	local ID='' VERSION_ID='' PRETTY_NAME='an unknown system'
	# shellcheck source=/dev/null
	[ ! -r /etc/os-release ] || . /etc/os-release
	case "$ID-$VERSION_ID" in
	debian-12 | debian-13 | ubuntu-24.04) return ;;
	esac
	die "$PRETTY_NAME is not Debian 12, Debian 13 or Ubuntu 24.04. Install what its packages" \
		"for these are called, then run it again: $* and the kernel's headers"
}

# Headers of the running kernel, or the distribution's generic ones: XDP programs use only the
# stable interface, so headers of another version serve.
have_headers() {
	[ -d "/lib/modules/$(uname -r)/build" ] || is_installed "$(generic_headers)"
}

generic_headers() {
	if [ -e /etc/debian_version ] && ! grep -qs '^ID=ubuntu' /etc/os-release; then
		echo "linux-headers-$(dpkg --print-architecture)"
	else
		echo linux-headers-generic
	fi
}

headers_package() {
	local own generic
	own="linux-headers-$(uname -r)" generic=$(generic_headers)
	if [ -n "$(apt-cache search --names-only "^$own\$")" ]; then
		echo "$own"
	else
		say "no headers package for this kernel ($(uname -r)): the generic $generic serve as well"
		echo "$generic"
	fi
}

install_packages() {
	local nginx_is_new=
	is_installed nginx || nginx_is_new=yes
	without_starting_services quietly env DEBIAN_FRONTEND=noninteractive \
		apt-get install -q -y --no-install-recommends --reinstall -o DPkg::Lock::Timeout=300 \
		-o "DPkg::Options::=--path-include=$dpkt_documents/*" "$@"
	# Nor may it start at the next boot, unless it was there before us.
	if [ -n "$nginx_is_new" ] && is_installed nginx; then
		quietly update-rc.d nginx disable
	fi
}

# A package that starts a service (nginx on port 80) would surprise the operator. A policy that the
# machine has already is left as it is.
without_starting_services() (
	policy=/usr/sbin/policy-rc.d
	if [ ! -e "$policy" ]; then
		trap 'rm -f "$policy"' EXIT
		printf '#!/bin/sh\nexit 101\n' >"$policy"
		chmod 755 "$policy"
	fi
	"$@"
)
