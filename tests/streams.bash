# SPDX-License-Identifier: BSD-2-Clause
# shellcheck shell=bash
# For tests of streams: `load helper; load disks; load streams`.

# The independent reader and editor of streams.
dump() {
	"$python" -c 'import xxhash' 2>/dev/null || skip "needs python3-xxhash"
	"$python" "$top/tests/model/streamdump.py" "$@"
}

# faulty VAR=N… COMMAND…: runs the command on a storage that fails; see tests/model/fault.c.
faulty() {
	local so=$BATS_FILE_TMPDIR/fault.so
	[ -f "$so" ] || ${CC:-cc} -shared -fPIC -o "$so" "$top/tests/model/fault.c" -ldl
	ASAN_OPTIONS=${ASAN_OPTIONS:+$ASAN_OPTIONS:}verify_asan_link_order=0 \
		env LD_PRELOAD="$so" "$@"
}

# nothing_left FILE…: the folder holds these and nothing else, no temporary files either.
nothing_left() {
	local have want
	have=$(ls -A .)
	want=$(printf '%s\n' "$@" | sort)
	[ "$(sort <<<"$have")" = "$want" ] || fail "left behind:" "$have"
}

# on_terminal COMMAND: with a terminal as standard input, output and error.
on_terminal() {
	need script
	script -qec "$1" /dev/null </dev/null
}

# chain [DIR]: base.vhd and its child child.avhd there; base.raw and disk.raw are what they hold.
chain() {
	mkdir -p "${1:-.}"
	(
		cd "${1:-.}" || exit
		model make base.vhd --size=8M --fill=30:4K --raw=base.raw
		cp base.raw disk.raw
		model make child.avhd --parent=base.vhd --fill=30:4K --seed=7 --raw=disk.raw
	)
}
