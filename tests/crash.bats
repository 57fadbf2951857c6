# SPDX-License-Identifier: BSD-2-Clause
# Every operation that changes disks, cut short in every way that a power cut, a full disk, a failed sync or a kill
# can do it (tests/crash/explore.c). A sample; `make crash-long` takes more, and others each time. QSM_CRASH_SEED is
# where it starts, QSM_CRASH_STATES is how many for each operation.
load helper

explore=$QSM_BUILD/tests/crash/explore

# Where syncs cost nothing, if there is such a place.
setup() {
	fast=$(mktemp -d -p /dev/shm qsm-crash.XXXXXX 2>/dev/null || mktemp -d)
}

teardown() {
	rm -rf "$fast"
}

# sample OPERATION STATES: that many states of it; sanitizers make each one ten times as long.
sample() {
	local states=${QSM_CRASH_STATES:-$2} kept=
	# shellcheck disable=SC2154
	[ -z "$sanitizer" ] || states=$((states / 10))
	# Which scenarios have kept sums that are believed is chance: more of them, until there are.
	[ "$states" -lt 800 ] || kept=--kept
	run "$explore" --dir="$fast" --op="$1" --states="$states" $kept \
		--seed="${QSM_CRASH_SEED:-$chance}"
	printf '# %s\n' "${lines[0]}" "${lines[-1]}" >&3
	assert_status 0
	# kept sums were there to be looked at
	[[ "${lines[-1]}" != *" 0 kept sums"* ]] || [ "$states" -lt 800 ] || fail "no sums were kept"
}

@test "crash: a merge leaves the child's view alone, and the parent whole or unopened" {
	sample merge 4000
}

@test "crash: guest writes are there when flushed, old or new when not" {
	sample guest 6000
}

@test "crash: a chain made into a new disk" {
	sample flatten 2500
}

@test "crash: a resize leaves the old disk or the new one" {
	sample resize 4000
}

@test "crash: a new link to a parent is the old one or the new one" {
	sample reparent 2500
}

@test "crash: a repair loses nothing, and can be taken back" {
	sample repair 1500
}

@test "crash: a snapshot is there and whole, or not there" {
	sample snap 2500
}

@test "crash: a new disk is there and whole, or not there" {
	sample create 1500
}

@test "crash: a disk that is filled before it gets its name" {
	sample fill 2500
}

@test "crash: a stream that is received, cut and gone on with: no disk, or the whole one" {
	sample recv 1200
}

@test "crash: a stream onto a disk: the old one, closed, or the new one" {
	sample onto 1200
}

@test "crash: what was received is given up" {
	sample abort 800
}

@test "crash: no call that changes files escapes the recording" {
	local lib=$QSM_BUILD/lib/libimg.a calls=$top/tests/crash/calls unknown known f p
	# and what vhd-recv does
	local all=("$lib" "$QSM_BUILD"/src/libcli.a "$QSM_BUILD"/src/recv*.o "$QSM_BUILD"/src/partial*.o)
	comm -23 <(nm -u "${all[@]}" | awk 'NF == 2 { print $2 }' | sort -u) \
		<(nm "${all[@]}" | awk 'NF == 3 && $2 != "U" { print $3 }' | sort -u) >"$BATS_TEST_TMPDIR/called"
	[ -s "$BATS_TEST_TMPDIR/called" ]
	set -f
	known=$(sed -n 's/^\(changes\|harmless\) //p' "$calls")
	while read -r f; do
		for p in $known; do
			# shellcheck disable=SC2254
			case $f in
			$p) continue 2 ;;
			esac
		done
		unknown="$unknown $f"
	done <"$BATS_TEST_TMPDIR/called"
	[ -z "$unknown" ] || fail "not in tests/crash/calls:$unknown"
	# those that change something are really taken
	for f in $(sed -n 's/^changes //p' "$calls"); do
		nm "$explore" | grep -q " __wrap_$f\$" || fail "$f: not in record.c"
		grep -q -- "--wrap=$f\>" "$top/Makefile.am" || fail "$f: not wrapped"
	done
}
