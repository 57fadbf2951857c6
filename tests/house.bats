# SPDX-License-Identifier: BSD-2-Clause
# The rules that hold for every tool, script and page. A new tool is covered without a word here.
load helper

# Everything that is installed to be called.
programs() {
	for p in "$QSM_BUILD"/src/v[hm]* "$top"/scripts/hv-* "$top/scripts/qsm-pipeline.sh"; do
		case $p in
		*.o | *.c | *.h | *.[0-9]) ;;
		*) [ ! -f "$p" ] || [ ! -x "$p" ] || echo "$p" ;;
		esac
	done
}

page_of() {
	local p
	for p in "$top/man/$(basename "$1" .sh)".[0-9] "$top/man/$(basename "$1")".[0-9]; do
		if [ -f "$p" ]; then
			echo "$p"
			return
		fi
	done
	fail "$1 has no page"
}

# all CHECK: runs it for every program and names those that fail.
all() {
	local p bad=
	[ -n "$(programs)" ] || fail "no programs in $QSM_BUILD/src"
	for p in $(programs); do
		"$1" "$p" || bad="$bad $(basename "$p")"
	done
	[ -z "$bad" ] || fail "not so:$bad"
}

helps() {
	local err
	err=$("$1" --help 2>&1 >"$BATS_TEST_TMPDIR/help") && [ -z "$err" ] && [ -s "$BATS_TEST_TMPDIR/help" ]
}

tells_version() {
	"$1" --version </dev/null | grep -q '[0-9]'
}

refuses_unknown_option() {
	local status=0
	"$1" --no-such-option </dev/null >"$BATS_TEST_TMPDIR/out" 2>"$BATS_TEST_TMPDIR/err" || status=$?
	[ "$status" -eq 64 ] && [ -s "$BATS_TEST_TMPDIR/err" ] && [ ! -s "$BATS_TEST_TMPDIR/out" ]
}

sees_full_stdout() {
	! "$1" --help >/dev/full 2>/dev/null
}

has_page_and_test() {
	local name
	name=$(basename "$1" .sh)
	page_of "$1" >/dev/null && { [ -f "$top/tests/$name.bats" ] || [ -f "$top/tests/${name#qsm-}.bats" ]; }
}

long_options_of_help() {
	"$1" --help | grep -oE -e '(^|[^[:alnum:]-])--[a-z][a-z0-9-]+' | grep -oE -e '--.*' | sort -u
}

options_are_in_page() {
	local text missing
	text=$(mandoc -T ascii "$(page_of "$1")" | sed 's/.\x08//g')
	missing=$(long_options_of_help "$1" | while read -r o; do
		grep -qE -e "$o([^a-z0-9-]|\$)" <<<"$text" || echo "$o"
	done)
	[ -z "$missing" ] || {
		echo "$(basename "$1"): not in its page:" $missing
		return 1
	}
}

options_of_page_are_in_help() {
	local missing
	missing=$(sed -n 's/^\.It .*Fl Fl \([a-z][a-z0-9-]*\).*/--\1/p' "$(page_of "$1")" | sort -u |
		while read -r o; do
			long_options_of_help "$1" | grep -qxF -e "$o" || echo "$o"
		done)
	[ -z "$missing" ] || {
		echo "$(basename "$1"): not in --help:" $missing
		return 1
	}
}

@test "--help goes to standard output and is a success" {
	all helps
}

@test "--version tells a version" {
	all tells_version
}

@test "an unknown option is refused with 64, on standard error" {
	all refuses_unknown_option
}

@test "output that cannot be written is no success" {
	all sees_full_stdout
}

@test "every program has a page and a test" {
	all has_page_and_test
}

@test "every option of --help stands in the page" {
	all options_are_in_page
}

@test "every option of the page stands in --help" {
	all options_of_page_are_in_help
}

@test "the pages are clean" {
	run mandoc -T lint -W warning "$top"/man/*.[0-9]
	assert_status 0
	[ -z "$output" ] || fail "mandoc has something to say"
}

@test "every page of a program has exit status and examples" {
	for p in $(programs); do
		for section in "EXIT STATUS" EXAMPLES; do
			grep -q "^\.Sh $section" "$(page_of "$p")" || fail "$(page_of "$p") has no $section"
		done
	done
}

@test "shellcheck has nothing to say about the scripts" {
	for f in quickstart bootstrap .ci/run scripts/* tests/run tests/lab/*; do
		if head -n 1 "$top/$f" | grep -q '^#!/bin/sh'; then
			(cd "$top" && shellcheck -a "$f") || fail "$f"
		fi
	done
}

@test "dash and busybox ash can read the scripts" {
	for f in "$top"/quickstart "$top"/bootstrap "$top"/scripts/* "$top"/tests/run "$top"/tests/lab/*; do
		if head -n 2 "$f" | grep -q -e '^#!/bin/sh' -e '^# shellcheck shell=sh'; then
			dash -n "$f" && busybox ash -n "$f" || fail "$f"
		fi
	done
}

@test "every source begins with its licence" {
	for f in "$top"/lib/*.[ch] "$top"/src/*.[ch] "$top"/plugin/*.[ch]; do
		head -n 1 "$f" | grep -q 'SPDX-License-Identifier: BSD-2-Clause' || fail "$f"
	done
}

@test "C sources are laid out as .clang-format says" {
	command -v clang-format >/dev/null || skip "needs clang-format"
	cd "$top"
	find lib src plugin tests -name '*.[ch]' -exec clang-format --dry-run -Werror {} +
}
