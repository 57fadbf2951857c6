# SPDX-License-Identifier: BSD-2-Clause
# shellcheck shell=bash
# For tests of disks: `load helper; load disks`. Loaded files end up in the test's own folder.

# need PROGRAM…: skips the test, visibly, if one is missing.
need() {
	local p
	for p; do
		command -v "$p" >/dev/null || skip "needs $p"
	done
}

# The system's own Python, if there is one: others may take long to start.
python=/usr/bin/python3
[ -x "$python" ] || python=python3

# A folder that only the test writes to.
workdir() {
	mkdir -p "$BATS_TEST_TMPDIR/w"
	cd "$BATS_TEST_TMPDIR/w" || return
}

# The independent implementation that results are compared with.
model() {
	"$python" "$top/tests/model/vhdmodel.py" "$@"
}

# corpus NAME…: samples of real VHDs, into the current folder under their base names.
corpus() {
	local n d=${VHD_CORPUS:-$top/../shared/corpus}
	for n; do
		[ -f "$d/$n.zst" ] || skip "needs the sample $n (set VHD_CORPUS)"
		zstd -qdf "$d/$n.zst" -o "${n##*/}"
	done
}

# sha FILE…: one word a file
sha() {
	sha256sum -- "$@" | sed 's/^\\//; s/ .*//'
}

# The content of a disk by its own tool, and by the model.
our_sha() {
	vhd-convert -q --type=raw "$@" - | sha256sum | cut -d' ' -f1
}

# is_raw DISK RAW: the guest sees RAW on DISK, by our tool and by the model.
is_raw() {
	[ "$(our_sha "$1")" = "$(sha "$2")" ] || fail "$1 does not read as $2"
	[ "$(model sha "$1")" = "$(sha "$2")" ] || fail "the model does not read $1 as $2"
}

# sound FILE…: no rule of the format is broken. Options of the model's check first.
sound() {
	local out
	out=$(model check "$@") || fail "$out"
}

# field FILE NAME: one value out of a VHD
field() {
	model get "$@"
}

# json FILTER: of the last run's output
json() {
	[ -n "$output" ] || fail "no JSON" || return
	jq -er "$1" <<<"$output"
}

# hold FILE read|write: another process holds the disk as QEMU does, until release or the test's end.
hold() {
	mkfifo "$BATS_TEST_TMPDIR/hold.in" "$BATS_TEST_TMPDIR/hold.out"
	"$python" "$top/tests/model/vhdmodel.py" hold "$1" "$2" \
		<"$BATS_TEST_TMPDIR/hold.in" >"$BATS_TEST_TMPDIR/hold.out" 3>&- &
	holder=$!
	exec 7>"$BATS_TEST_TMPDIR/hold.in"
	local word
	read -r word <"$BATS_TEST_TMPDIR/hold.out"
	[ "$word" = held ]
}

release() {
	exec 7>&-
	wait "$holder" || :
	rm -f "$BATS_TEST_TMPDIR/hold.in" "$BATS_TEST_TMPDIR/hold.out"
}

# small_fs SIZE COMMAND…: the shell command, in a mount namespace with a tmpfs of SIZE on small/
small_fs() {
	local size=$1
	shift
	needs_root
	mkdir -p small
	unshare -m sh -c 'mount -t tmpfs -o size="$1" none small || exit 99; shift; eval "$@"' sh "$size" "$*"
}

# unchanged FILE… -- COMMAND…: the command neither changes a byte of the files nor their times
# nor what their folder holds.
unchanged() {
	local files=() before after
	while [ "$1" != -- ]; do
		files+=("$1")
		shift
	done
	shift
	before=$(sha256sum "${files[@]}"; stat -c '%s %Y %i' "${files[@]}"; ls -A .)
	run --separate-stderr "$@"
	after=$(sha256sum "${files[@]}"; stat -c '%s %Y %i' "${files[@]}"; ls -A .)
	[ "$before" = "$after" ] || fail "changed by $*:" "$before" "$after"
}

# refused STATUS COMMAND…: fails so, says why on standard error in one message, prints nothing,
# neither hangs nor takes more than MEMORY (KiB) of address space.
refused() {
	local want=$1
	shift
	run --separate-stderr limited "$@"
	[ "$status" -eq "$want" ] || fail "expected $want from: $*" "${stderr-}"
	[ -z "$output" ] || fail "standard output of: $*"
	[ -n "$stderr" ] || fail "no message from: $*"
	case $stderr in
	*ERROR:\ AddressSanitizer* | *runtime\ error:*) fail "$stderr" ;;
	esac
}

# An address space of its own is what a sanitizer needs, so it is not limited there.
sanitized=$(grep -l -s __asan_init "$QSM_BUILD/src/vhd-info" || :)
limited() {
	(
		[ -n "$sanitized" ] || ulimit -v "${MEMORY:-400000}"
		exec timeout "$patience" "$@"
	)
}

# faults PROGRAM ARGUMENT…: a tool is interrupted in every way, by tests/model/PROGRAM.py, where
# syncs cost nothing if there is such a place: thousands are done.
faults() {
	need strace
	local program=$1
	shift
	fast=$(mktemp -d -p /dev/shm qsm-faults.XXXXXX 2>/dev/null || mktemp -d)
	cd "$fast" || return
	run env PYTHONDONTWRITEBYTECODE=1 "$python" "$top/tests/model/$program.py" "$@"
	cd /
	rm -rf "$fast"
	assert_status 0
}
