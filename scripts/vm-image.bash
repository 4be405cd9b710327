# shellcheck shell=bash
# The disk image for scripts/vm-test, which defines say and die: a stock Debian of one release, with
# the project set up by its own scripts/setup as on a newcomer's machine.
#
# $cache/$release/{disk.img,vmlinuz,initrd.img,stamp}; stamp: what it was built from. Nothing is
# mounted here: mmdebstrap fills a folder, mkfs turns it into an image.
# shellcheck disable=SC2154 # cache is the reading script's

vm_packages=(systemd-sysv udev kmod linux-image-amd64 linux-headers-amd64 iproute2 curl ca-certificates)
vm_disk_size=4G
vm_unit=/etc/systemd/system/lb-xdp-vm.service

ensure_image() { # release
	local place="$cache/$1" wanted
	mkdir -p "$place"
	exec 8>"$place/lock"
	flock 8
	wanted="$(image_inputs) $(newest_kernel "$1")"
	if [ "$(cat "$place/stamp" 2>/dev/null)" != "$wanted" ]; then
		say "building the image of $1 in $place"
		rm -f "$place/stamp"
		build_image "$1" "$place"
		# Now the package lists are there, if they were not before.
		echo "$(image_inputs) $(newest_kernel "$1")" >"$place/stamp"
	fi
	flock -u 8
}

# What the image is made of, besides Debian: a change of any of these makes another image.
image_inputs() {
	cat scripts/vm-image.bash scripts/setup scripts/setup-*.bash scripts/constraints.txt \
		pyproject.toml | sha256sum | cut -c1-16
}

# The kernel that the archive has now, asked once a day; without a network, what it had last.
newest_kernel() { # release
	local apt="$cache/$1/apt"
	[ -e "$apt/etc/apt/sources.list" ] || return 0
	local options=(-o "Dir=$apt" -o "Dir::State::status=$apt/status" -o APT::Sandbox::User=root
		-o "Dir::Etc::trustedparts=/etc/apt/trusted.gpg.d")
	mkdir -p "$apt"/etc/apt/preferences.d "$apt"/var/lib/apt/lists/partial "$apt"/var/cache/apt/archives/partial
	touch "$apt/status"
	if [ -z "$(find "$apt/asked" -mmin -1440 2>/dev/null)" ]; then
		apt-get "${options[@]}" -qq update >/dev/null 2>&1 && touch "$apt/asked"
	fi
	apt-cache "${options[@]}" policy linux-image-amd64 | sed -n 's/ *Candidate: //p'
}

build_image() ( # release place
	place="$2"
	work=$(mktemp -d "$place/build.XXXXXX")
	trap 'rm -rf --one-file-system "$work"' EXIT
	trap 'exit 130' INT TERM HUP
	mkdir "$work/wheels" "$work/empty"
	copy_sources "$work/source"
	provide_wheels "$1" "$work/wheels"
	write_unit "$work/unit"
	log="$place/build.log"
	mmdebstrap --mode=root --variant=apt --include="$(IFS=,; echo "${vm_packages[*]}")" \
		--aptopt='Apt::Install-Recommends "false"' \
		--dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
		--dpkgopt='path-exclude=/usr/share/locale/*' \
		--customize-hook="mkdir -p \"\$1/opt/lb-xdp\" \"\$1/repo\" \"\$1/tmp/wheels\"" \
		--customize-hook="cp -r '$work/source/.' \"\$1/opt/lb-xdp\"" \
		--customize-hook="cp '$work/wheels/'*.whl \"\$1/tmp/wheels\"" \
		--customize-hook="chroot \"\$1\" env PIP_NO_INDEX=1 PIP_FIND_LINKS=/tmp/wheels PIP_CONFIG_FILE=/dev/null /opt/lb-xdp/scripts/setup" \
		--customize-hook="find \"\$1/opt/lb-xdp\" -mindepth 1 -maxdepth 1 ! -name .venv -exec rm -r {} + && rm -r \"\$1/tmp/wheels\"" \
		--customize-hook="cp '$work/unit' \"\$1$vm_unit\" && chroot \"\$1\" systemctl --quiet enable lb-xdp-vm.service systemd-networkd.service" \
		--customize-hook="echo lb-xdp-vm >\"\$1/etc/hostname\"; chroot \"\$1\" passwd -dq root" \
		"$1" "$work/root" >"$log" 2>&1 </dev/null || die "no image, $log says why: $(tail -n 3 "$log")"
	mkdir -p "$place/apt/etc/apt"
	cp "$work/root/etc/apt/sources.list" "$place/apt/etc/apt/"
	mv "$work/root/boot/"vmlinuz-* "$place/vmlinuz"
	mv "$work/root/boot/"initrd.img-* "$place/initrd.img"
	mkfs.ext4 -q -F -O ^has_journal -d "$work/root" "$work/disk.img" "$vm_disk_size" >/dev/null
	mv "$work/disk.img" "$place/disk.img"
)

# The checkout as it is now, without what is ignored: another edit does not reach a running test.
copy_sources() { # folder
	mkdir -p "$1"
	git ls-files -z --cached --others --exclude-standard | while IFS= read -r -d '' file; do
		[ ! -e "$file" ] || printf '%s\0' "$file"
	done | tar --null --files-from=- -cf - | tar -C "$1" -xf -
}

# Libraries for the guest's Python, by this machine's pip with its settings: the guest has no network.
provide_wheels() { # release folder
	local version
	case "$1" in
	bookworm) version=3.11 ;;
	trixie) version=3.13 ;;
	esac
	python3 - pyproject.toml >"$2/requirements.txt" <<-'EOF'
		import sys, tomllib
		with open(sys.argv[1], "rb") as file:
		    project = tomllib.load(file)
		needs = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
		extras = project["project"]["optional-dependencies"].values()
		needs += [*(need for extra in extras for need in extra), "clang-format", "editables"]
		needs = [need for need in needs if not need.startswith("lb-xdp[")] # its own extras
		print("\n".join(needs))
	EOF
	.venv/bin/python -m pip download -q --dest "$2" --only-binary=:all: --python-version "$version" \
		-c scripts/constraints.txt -r "$2/requirements.txt" >"$2/log" 2>&1 ||
		die "no libraries for Python $version: $(tail -n 3 "$2/log")"
}

# Copies the shared checkout once, then takes commands: tests/vm/agent.py.
write_unit() { # file
	cat >"$1" <<-'EOF'
		[Unit]
		Description=Commands from the host that this machine runs on
		[Service]
		Environment=HOME=/root LANG=C.UTF-8
		ExecStartPre=/bin/sh -ec '[ ! -e /opt/lb-xdp/pyproject.toml ] || exit 0; modprobe -a 9p 9pnet_virtio; mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=262144 repo /repo; cp -r /repo/. /opt/lb-xdp/'
		ExecStart=/usr/bin/python3 /opt/lb-xdp/tests/vm/agent.py
		[Install]
		WantedBy=multi-user.target
	EOF
}
