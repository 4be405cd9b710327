# shellcheck shell=bash
# The project in .venv for scripts/setup, which defines say, die and quietly.

# Only the distribution's Python sees its bcc; PyPI's bcc is another library.
python=/usr/bin/python3
stamp=.venv/lb-xdp-setup

ensure_venv() { # runtime|dev
	local place wanted
	[ -x "$python" ] || die "$python is missing: install python3"
	place="$python $("$python" -V) at $PWD"
	wanted=$(cat pyproject.toml scripts/constraints.txt scripts/setup-venv.bash lb_xdp/*.c | sha256sum)
	if stamp_says "$1" "$place" "$wanted" || stamp_says dev "$place" "$wanted"; then
		return
	fi
	check_python
	# A venv of another Python, or of a checkout that was moved, cannot be mended.
	if ! grep -qsxF "$place" "$stamp" || ! .venv/bin/python -c '' 2>/dev/null; then
		say "making .venv from $("$python" -V)"
		rm -rf .venv
		quietly "$python" -m venv --system-site-packages .venv
	fi
	install_project "$1"
	build_native
	printf '%s\n' "$1" "$place" "$wanted" >"$stamp"
}

stamp_says() {
	[ "$(cat "$stamp" 2>/dev/null)" = "$(printf '%s\n' "$@")" ] && [ -x .venv/bin/lb-xdp ] &&
		.venv/bin/python -c '' 2>/dev/null
}

check_python() {
	"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
		die "$python is $("$python" -V), and 3.11 is needed: use Debian 12 or Ubuntu 24.04, or later"
	"$python" -c 'import bcc' 2>/dev/null ||
		die "$python cannot import bcc: apt-get install --reinstall python3-bpfcc"
}

install_project() {
	local what=(-e '.[dev]')
	[ "$1" = dev ] || what=(-e .)
	say "installing the project and its libraries into .venv"
	quietly .venv/bin/python -m pip install -q --disable-pip-version-check \
		-c scripts/constraints.txt "${what[@]}"
}

# The hottest loop of the controller. Without a compiler Python does the same, more slowly; kernel
# headers bring one along on Debian and Ubuntu.
build_native() {
	local compiler
	rm -f lb_xdp/liblb_ring.so
	for compiler in cc gcc gcc-14 gcc-13 gcc-12 clang; do
		if command -v "$compiler" >/dev/null &&
			"$compiler" -O2 -std=c11 -Wall -Wextra -Werror -ffreestanding -nostdlib -fPIC -shared \
				-o lb_xdp/liblb_ring.so lb_xdp/lb_ring.c 2>/dev/null; then
			return
		fi
	done
	say "no C compiler: rings of many services will take longer to make"
}
