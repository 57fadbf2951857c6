# SPDX-License-Identifier: BSD-2-Clause
# The fuzzers: what they found once stays found, and a while of new inputs. `make fuzz-long` is the
# campaign.
load helper

# Built once for the file, for new inputs. Those that are kept need no clang.
setup_file() {
	local status=0
	env -u MAKEFLAGS -u MFLAGS make -j2 -C "$QSM_BUILD" fuzzers >"$BATS_FILE_TMPDIR/log" 2>&1 ||
		status=$?
	if grep -q 'fuzzers need clang' "$BATS_FILE_TMPDIR/log"; then
		: >"$BATS_FILE_TMPDIR/no-clang"
	elif [ "$status" != 0 ]; then
		cat "$BATS_FILE_TMPDIR/log" >&2
		return 1
	fi
}

# kept NAME: every input of that fuzzer, as it is built with everything else.
kept() {
	run "$QSM_BUILD/tests/fuzz/replay-$1" "$top/tests/fuzz/corpus/$1"/*
	assert_status 0
	[ "${lines[-1]}" = "$(find "$top/tests/fuzz/corpus/$1" -type f | wc -l) inputs" ]
}

@test "kept inputs: images" {
	kept image
}

@test "kept inputs: operations on chains" {
	kept chain
}

@test "kept inputs: names of parents" {
	kept locator
}

@test "kept inputs: streams" {
	kept recv
}

# That the fuzzers work, and what they find at once; what takes luck is the campaign's. Always from
# the same FUZZ_SEED.
@test "new inputs pass, FUZZ_SECONDS (10) of each fuzzer" {
	[ ! -e "$BATS_FILE_TMPDIR/no-clang" ] || skip "needs clang with libFuzzer (libclang-rt-14-dev)"
	run "$top/tests/fuzz/run" --seconds="${FUZZ_SECONDS:-10}" --seed="${FUZZ_SEED:-1}" \
		--corpus="$BATS_TEST_TMPDIR" "$QSM_BUILD/fuzz"
	assert_status 0
	for name in image chain locator recv; do
		grep -q "^$name: .*inputs tried: [1-9]" <<<"$output" || fail "nothing was tried: $name"
	done
}

# on_small_disks COMMAND…: $TMPDIR has 2 MiB, and /dev/shm as much.
on_small_disks() {
	unshare -rm true 2>/dev/null || skip "needs user namespaces"
	mkdir -p small
	# shellcheck disable=SC2016
	run unshare -rm sh -c 'mount -t tmpfs -o size=2m tmpfs small &&
		mount -t tmpfs -o size=2m tmpfs /dev/shm && TMPDIR=$PWD/small exec "$@"' sh "$@"
}

@test "an input that finds the disk full is not taken for a fault" {
	cd "$BATS_TEST_TMPDIR"
	for name in image chain recv; do
		on_small_disks "$QSM_BUILD/tests/fuzz/replay-$name" "$top/tests/fuzz/corpus/$name"/*
		assert_status 73
		assert_output_has '== NO ROOM in '
	done
}

@test "nothing is tried where there is too little room for it" {
	cd "$BATS_TEST_TMPDIR"
	on_small_disks "$top/tests/fuzz/run" "$QSM_BUILD/fuzz"
	assert_status 73
	assert_output_has 'no room: '
}

@test "every kept input is small" {
	[ -z "$(find "$top/tests/fuzz/corpus" -type f -size +8k)" ]
	[ "$(find "$top/tests/fuzz/corpus" -type f | wc -l)" -gt 20 ]
}
