# SPDX-License-Identifier: BSD-2-Clause
# shellcheck shell=bash
# What every test file loads: `load helper`. The tools come from $QSM_BUILD (default: build in the
# source tree), the scripts from the source tree.

bats_require_minimum_version 1.5.0

top=$(cd "$BATS_TEST_DIRNAME/.." && pwd)
: "${QSM_BUILD:=$top/build}"
export top QSM_BUILD
case :$PATH: in
*":$QSM_BUILD/src:"*) ;;
*) PATH=$QSM_BUILD/src:$top/scripts:$PATH:/usr/sbin:/sbin ;;
esac
export PATH
export QSM_PLUGIN=${QSM_PLUGIN:-$QSM_BUILD/plugin/nbdkit-vhd-plugin.so}
# A plugin with sanitizers in it needs their run-time library in the server, which has none: an nbdkit in
# front of the real one loads it, for hv-qemu and the hosts too.
sanitizer=$(ldd "$QSM_PLUGIN" 2>/dev/null | awk '/libasan/ { print $3 }')
if [ -n "$sanitizer" ] && [ -n "${BATS_RUN_TMPDIR:-}" ]; then
	if [ ! -x "$BATS_RUN_TMPDIR/sanitized/nbdkit" ]; then
		mkdir -p "$BATS_RUN_TMPDIR/sanitized"
		printf '#!/bin/sh\nASAN_OPTIONS=detect_leaks=0 LD_PRELOAD=%s exec %s "$@"\n' \
			"$sanitizer" "$(command -v nbdkit)" >"$BATS_RUN_TMPDIR/sanitized/nbdkit"
		chmod +x "$BATS_RUN_TMPDIR/sanitized/nbdkit"
	fi
	case :$PATH: in
	*":$BATS_RUN_TMPDIR/sanitized:"*) ;;
	*) PATH=$BATS_RUN_TMPDIR/sanitized:$PATH ;;
	esac
fi
export LC_ALL=C.UTF-8
# Nothing of the caller's may leak in, and nothing of the tests out.
unset QSM_PARENT_PATH QSM_LAB QSM_LAB_HOST QSM_VM_DIR QSM_RUN_DIR QSM_STATE_DIR QSM_NET_DIR

# What is tried by chance is the same in each run: a tree that did not change passes again. QSM_SEED=$RANDOM tries
# something else.
export chance=${QSM_SEED:-1}

# fail MESSAGE…: what was wrong, shown with the last `run`. tests/run finds the first one by its arrow.
fail() {
	printf '==> ' >&2
	printf '%s\n' "$@" >&2
	if [ -n "${output+set}" ]; then
		printf 'status %s, output:\n%s\n' "${status:-?}" "$output" >&2
	fi
	return 1
}

# assert_status N: of the last `run`.
assert_status() {
	[ "$status" -eq "$1" ] || fail "expected exit status $1"
}

# assert_output_has TEXT: somewhere in the output of the last `run`.
assert_output_has() {
	case $output in
	*"$1"*) ;;
	*) fail "expected in the output: $1" ;;
	esac
}

# needs_root: skips a test that cannot be run by anybody else.
needs_root() {
	[ "$(id -u)" = 0 ] || skip "needs root"
}

# Seconds after which something is taken to hang: many, since the machine may be slow and busy, and limits
# cost nothing where all goes well.
patience=120

# wait_for COMMAND…: until the command succeeds.
wait_for() {
	local tries=$((patience * 20))
	until "$@"; do
		tries=$((tries - 1))
		# Also where who waits has an `||` of its own, which takes the meaning from `set -e`.
		[ "$tries" -gt 0 ] || fail "waited in vain for: $*" || return
		sleep 0.05
	done
}

# qemu_opens [OPTION]… FILE: qemu-io has FILE open until descriptor 7 is closed. It tells itself that it
# has: a tool that tries the lock takes it for a moment, and if QEMU comes in that moment it is refused.
qemu_opens() {
	local pipe=$BATS_TEST_TMPDIR/qemu
	mkfifo "$pipe.in"
	stdbuf -oL qemu-io "$@" <"$pipe.in" >"$pipe.out" 3>&- &
	exec 7>"$pipe.in"
	echo 'read 0 512' >&7
	wait_for grep -q 'read 512/512' "$pipe.out"
}

# is_traced PID: a tracer has each of its threads; it takes them one after the other.
is_traced() {
	! grep -q '^TracerPid:[[:space:]]*0$' "/proc/$1/task/"*/status
}

# catches_term PID: the program has begun and ends in its own way at SIGTERM (bit 14 of the mask). Before that the
# process is a copy of this shell, which catches it too.
catches_term() {
	local mask
	[ ! "/proc/$1/exe" -ef "/proc/$$/exe" ] || return 1
	mask=$(sed -n 's/^SigCgt:[[:space:]]*//p' "/proc/$1/status")
	[ $((0x$mask & 0x4000)) -ne 0 ]
}
