# SPDX-License-Identifier: BSD-2-Clause
# The pipeline is killed after each record of its journal, and the same command run again.
load helper
load pipeline

# What the guest said on the host that it has left, in the order in which it was where.
keep_console() { # HOST
	cat "$scene/$1/run/qsm/$scene_uuid/console.log" >>"$scene/console"
	rm -f "$scene/$1/run/qsm/$scene_uuid/console.log"
}

# One move, between hosts that change roles; the folder is another one each time.
move_on() { # FROM TO N [OPTIONS]
	local from=$1 to=$2 n=$3
	shift 3
	mkdir -p "$scene/$to/srv/$n"
	QSM_LAB=$scene "$scene_tools/hosts" exec "$from" qsm-pipeline.sh --quiet --ssh="$(scene_hosts ssh)" \
		--network=$([ "$from" = a ] && echo blue=green || echo green=blue) "$@" guest "host$to:$scene/$to/srv/$n"
}

# The same, killed after record N of its journal, if it has so many, and finished by the same command.
killed_move() { # FROM TO N
	local status=0
	at "$3" 'kill -9 $pipeline'
	move_on "$@" >/dev/null 2>"$scene/err" || status=$?
	PATH=${PATH#"$scene/bin":}
	[ "$(owners | wc -w)" -le 1 ] || fail "record $3: owners: $(owners)" || return
	[ "$(running)" -le 1 ] || fail "record $3: it runs twice" || return
	if happened; then
		[ "$status" -eq 137 ] || fail "record $3: status $status" "$(cat "$scene/err")" || return
		rm -f "$scene/bin/done"
		run move_on "$@"
		[ "$status" -eq 0 ] || fail "record $3: the second run does not finish" || return
	else
		[ "$status" -eq 0 ] || fail "the last run failed with status $status" "$(cat "$scene/err")" || return
	fi
	[ "$(owners)" = "$2 " ] || fail "record $3: owners: $(owners)"
}

@test "killed after any record of the journal, a move is finished by the same command, with one owner all the time" {
	local n=0 from=a to=b next
	small_guest
	while :; do
		n=$((n + 1))
		[ "$n" -lt 40 ] || fail "there is no end to the records"
		killed_move $from $to "$n"
		[ "$(scene_state $to)" = running ] || fail "record $n: the guest is $(scene_state $to)"
		[ "$(find "$scene/$to/srv/$n/guest" | wc -l)" -eq 3 ] ||
			fail "record $n: left: $(find "$scene/$to/srv/$n/guest")"
		keep_console $from
		next=$from from=$to to=$next
		[ -e "$scene/bin/do" ] && break
	done
	[ "$n" -gt 12 ] || fail "only $n records"
	scene_acks $from 20
	scene_hosts exec $from hv-qemu --quiet stop guest
	keep_console $from
	scene_log_a=$scene/console scene_log_b=/nonexistent
	run scene_check $from
	echo "$output"
	assert_status 0
	assert_output_has $'\nlost=0\n'
	assert_output_has $'\nfiles_lost=0\n'
	assert_output_has $'\nreboots=0\n'
}

@test "killed after any record from the pause on, a move on one host is finished by the same command, without a reboot" {
	local n record status
	small_guest
	n=0
	for record in pausing yielding yielded resumed finished; do
		n=$((n + 1))
		mkdir -p "$scene/a/srv/$n"
		at "$record" 'kill -9 $pipeline'
		status=0
		scene_hosts exec a qsm-pipeline.sh --quiet guest "$scene/a/srv/$n" >/dev/null 2>&1 || status=$?
		[ "$status" -eq 137 ] || fail "record $record: status $status"
		run scene_hosts exec a qsm-pipeline.sh --quiet guest "$scene/a/srv/$n"
		[ "$status" -eq 0 ] || fail "record $record: the second run does not finish"
		runs_at a
		[ "$(scene_leaf a vda)" = "$scene/a/srv/$n/guest/vda.vhd" ]
	done
	nothing_is_lost a
}

@test "killed after any record, the move of a saved guest is finished by the same command, and it is saved all the time" {
	local n=0 from=a to=b next
	small_guest
	scene_hosts exec a hv-qemu --quiet save guest >/dev/null
	while :; do
		n=$((n + 1))
		[ "$n" -lt 40 ] || fail "there is no end to the records"
		killed_move $from $to "$n"
		[ "$(scene_state $to)" = saved ] || fail "record $n: the guest is $(scene_state $to)"
		[ ! -e "$scene/$from/var/vms/guest/saved" ] || fail "record $n: its state is still on host $from"
		next=$from from=$to to=$next
		[ -e "$scene/bin/do" ] && break
	done
	[ "$n" -gt 10 ] || fail "only $n records"
	scene_hosts exec $from hv-qemu --quiet start guest
	scene_acks $from 20
	scene_hosts exec $from hv-qemu --quiet stop guest
	[ $from = a ] || scene_log_a=$scene/a/run/qsm/$scene_uuid/console.log
	run scene_check $from
	echo "$output"
	assert_status 0
	assert_output_has $'\nlost=0\n'
	assert_output_has $'\nreboots=0\n'
}

# An adapter that is hv-qemu, but its caller dies after a certain verb.
deadly_adapter() { # VERB
	cat >"$scene/bin/hv-deadly" <<-SH
		#!/bin/sh
		"$top/scripts/hv-qemu" "\$@" || exit
		case " \$* " in
		*" $1 "*) [ -e "$scene/bin/done" ] || { : >"$scene/bin/done"; kill -9 \$PPID; } ;;
		esac
	SH
	chmod +x "$scene/bin/hv-deadly"
	PATH=$scene/bin:$PATH
}

@test "killed when the process has ended and the disks are not switched yet, the guest goes on all the same" {
	local verb status n=0
	small_guest
	mkdir "$scene/bin"
	for verb in stop switch; do
		n=$((n + 1))
		mkdir -p "$scene/a/srv/$n"
		rm -f "$scene/bin/done"
		deadly_adapter $verb
		status=0
		scene_hosts exec a qsm-pipeline.sh --quiet --hypervisor=deadly guest "$scene/a/srv/$n" >/dev/null 2>&1 || status=$?
		[ "$status" -eq 137 ] || fail "$verb: status $status"
		[ "$(scene_state a)" = off ]
		run scene_hosts exec a qsm-pipeline.sh --quiet guest "$scene/a/srv/$n"
		[ "$status" -eq 0 ] || fail "$verb: the second run does not finish"
		runs_at a
	done
	nothing_is_lost a
}

@test "the same, taken back: the guest goes on from its old disks" {
	small_guest
	mkdir -p "$scene/bin" "$scene/a/srv/new"
	deadly_adapter stop
	run scene_hosts exec a qsm-pipeline.sh --quiet --hypervisor=deadly guest "$scene/a/srv/new"
	assert_status 137
	run scene_hosts exec a qsm-pipeline.sh --abort guest "$scene/a/srv/new"
	echo "$output"
	assert_status 80
	runs_at a
	[ -z "$(ls -A "$scene/a/srv/new")" ]
	nothing_is_lost a
}
