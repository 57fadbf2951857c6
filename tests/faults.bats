# SPDX-License-Identifier: BSD-2-Clause
# One call of a tool fails, each in turn: memory runs out, a file cannot be opened or read, a disk is
# full or broken. FAULTS_MOST (25) calls of each task are tried; all when it is large. Tasks and
# rules: tests/model/nthfaults.py.
load helper
load disks

setup_file() {
	"${CC:-cc}" -shared -fPIC -o "$BATS_FILE_TMPDIR/nth.so" "$BATS_TEST_DIRNAME/model/nth.c" -ldl
}

# In memory: every trial copies some disks, and syncs.
setup() {
	# A sanitizer has an allocator of its own, and looks where it was loaded.
	[ -z "$sanitized" ] || skip "not with sanitizers"
	fast=$(mktemp -d -p /dev/shm qsm-faults.XXXXXX 2>/dev/null || mktemp -d)
	cd "$fast" || return
}

teardown() {
	[ -z "${fast:-}" ] || rm -rf "$fast"
}

# each KIND TASK…
each() {
	run "$python" -B "$top/tests/model/nthfaults.py" "$BATS_FILE_TMPDIR/nth.so" "$@" \
		--most="${FAULTS_MOST:-25}" --seed="$chance"
	[ "$status" -eq 0 ] || fail "--seed=$chance"
}

looking='info map sum check check-json send'
making='create snap convert import flatten recv recv-child'
changing='repair repair-link undo merge merge-to resize reparent recv-onto'

@test "no memory, while a disk is looked at" {
	each memory $looking
}

@test "no memory, while a disk is made" {
	each memory $making
}

@test "no memory, while a disk is changed" {
	each memory $changing
}

@test "a file that cannot be opened or read, while a disk is looked at" {
	each file $looking
}

@test "a file that cannot be opened or read, while a disk is made" {
	each file $making
}

@test "a file that cannot be opened or read, while a disk is changed" {
	each file $changing
}

@test "a file that cannot be written, while a disk is made" {
	each write $making
}

@test "a file that cannot be written, while a disk is changed" {
	each write $changing
}

@test "a signal in the middle of a call is seen by nobody" {
	each eintr $looking $making $changing
}

@test "a short transfer is seen by nobody" {
	each short $looking $making $changing
}

@test "a file system that has no holes, no copies, no renameat2" {
	each plain $looking $making $changing
}
