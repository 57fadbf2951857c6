# SPDX-License-Identifier: BSD-2-Clause
# The fuzzers: what they found once stays found, and a while of new inputs. `make fuzz-long` is the campaign.
load helper

# Built once for the file.
setup_file() {
	local status=0
	env -u MAKEFLAGS -u MFLAGS make -j2 -C "$QSM_BUILD" fuzzers >"$BATS_FILE_TMPDIR/log" 2>&1 || status=$?
	if grep -q 'fuzzers need clang' "$BATS_FILE_TMPDIR/log"; then
		: >"$BATS_FILE_TMPDIR/no-clang"
	elif [ "$status" != 0 ]; then
		cat "$BATS_FILE_TMPDIR/log" >&2
		return 1
	fi
}

setup() {
	[ ! -e "$BATS_FILE_TMPDIR/no-clang" ] || skip "needs clang with libFuzzer (libclang-rt-14-dev)"
}

fuzz() {
	run "$top/tests/fuzz/run" --corpus="$BATS_TEST_TMPDIR" "$@" "$QSM_BUILD/fuzz"
}

@test "every input that is kept passes" {
	fuzz --seconds=0
	assert_status 0
	assert_output_has "image: "
	assert_output_has "chain: "
	assert_output_has "locator: "
}

@test "new inputs pass, FUZZ_SECONDS (60) of each fuzzer" {
	fuzz --seconds="${FUZZ_SECONDS:-60}"
	assert_status 0
	for name in image chain locator; do
		grep -q "^$name: .*inputs tried: [1-9]" <<<"$output" || fail "nothing was tried: $name"
	done
}

@test "every kept input is small" {
	[ -z "$(find "$top/tests/fuzz/corpus" -type f -size +8k)" ]
	[ "$(find "$top/tests/fuzz/corpus" -type f | wc -l)" -gt 20 ]
}
