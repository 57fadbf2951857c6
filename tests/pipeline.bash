# SPDX-License-Identifier: BSD-2-Clause
# shellcheck shell=bash
# What the tests of the pipeline share: a guest between two folders, and something that happens just
# after a certain record of the journal became durable.

setup() {
	scene_tools=$top/tests/lab
	scene=$BATS_TEST_TMPDIR
	# shellcheck source=/dev/null
	. "$scene_tools/scene.sh"
	scene_up --local
	dest=$scene/b/srv/arrived
	mkdir -p "$dest"
}

teardown() {
	if [ -z "$BATS_TEST_COMPLETED" ]; then
		for h in a b; do
			tail -n 5 "$scene/$h"/run/qsm/*/*.log 2>/dev/null || :
			cat "$scene/$h"/var/*/journal 2>/dev/null || :
		done
	fi
	scene_down
}

# A guest with a small disk of records and a small file system; runs unless `off` is given.
small_guest() {
	scene_guest 64M 8M 32M 'qsm.rate=200 qsm.files=10'
	[ "${1:-}" = off ] || scene_start
}

# at RECORD|N COMMAND: happens once, after a record of that name, or the Nth, became durable in a journal
# of the pipeline; $pipeline is the process that waits for it meanwhile.
at() {
	mkdir -p "$scene/bin"
	printf '%s' "$1" >"$scene/bin/at"
	printf '%s' "$2" >"$scene/bin/do"
	: >"$scene/bin/count"
	PATH=${PATH#"$scene/bin":}
	printf '#!/bin/sh\nhere=%s\n%s "$@" || exit\n' "$scene/bin" "$(command -v sync)" >"$scene/bin/sync"
	cat >>"$scene/bin/sync" <<-'SH'
		for last; do :; done
		case $last in
		*/journal) ;;
		*) exit 0 ;;
		esac
		[ -e "$here/do" ] || exit 0
		echo >>"$here/count"
		what=$(tail -n 1 "$last" | cut -d ' ' -f 2)
		n=$(wc -l <"$here/count")
		case $(cat "$here/at") in
		"$what" | "$n") ;;
		*) exit 0 ;;
		esac
		mv "$here/do" "$here/done"
		pipeline=$PPID
		. "$here/done"
	SH
	chmod +x "$scene/bin/sync"
	PATH=$scene/bin:$PATH
}

happened() {
	[ -e "$scene/bin/done" ]
}

# Who may start the guest: as many words as there are owners.
owners() {
	local h
	for h in a b; do
		[ ! -e "$scene/$h/var/vms/guest/owner" ] || printf '%s ' $h
	done
}

# How many of them the guest's CPUs run on.
running() {
	local h n=0
	for h in a b; do
		[ ! -e "$scene/$h/var/vms/guest" ] || [ "$(scene_state $h)" != running ] || n=$((n + 1))
	done
	echo $n
}

runs_at() {
	[ "$(scene_state "$1")" = running ] || fail "on host $1 the guest is $(scene_state "$1")"
	scene_acks "$1" 20
	[ "$(owners)" = "$1 " ] || fail "owners: $(owners)"
	[ "$(running)" = 1 ] || fail "runs $(running) times"
}

nothing_is_lost() { # HOST
	scene_hosts exec "$1" hv-qemu --quiet stop guest
	run scene_check "$1"
	assert_status 0
	assert_output_has $'\nlost=0\n'
	assert_output_has $'\nfiles_lost=0\n'
	assert_output_has $'\nreboots=0\n'
}
